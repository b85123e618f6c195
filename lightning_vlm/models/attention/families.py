"""Which models attend by `flash_varlen`, as their classes and configurations say."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lightning_vlm.models.attention.kernel import WIDEST_HEAD, kernel_runs_on
from lightning_vlm.models.attention.varlen import CHANGES_SCORES, NAME, register
from lightning_vlm.models.causal import why_not_causal
from lightning_vlm.models.forwards import passes
from lightning_vlm.models.parts import vision_tower

ONE_CALL = "it takes all pictures in one call"
"""Why most towers have nothing to gain: each picture or tile is a row of their input."""


@dataclass(frozen=True)
class VarlenUse:
    """Where a model attends by `flash_varlen`.

    Args:
        why_not_tower: Why the vision tower doesn't; empty if it does.
        why_not_language: Why the language model can't where it is given lengths; empty if it can.

    >>> use = VarlenUse("there is none", "")
    >>> use.tower, use.language, use.why_not
    (False, True, 'vision tower: there is none')
    """

    why_not_tower: str
    why_not_language: str

    @property
    def tower(self) -> bool:
        """Whether the vision tower does."""
        return not self.why_not_tower

    @property
    def language(self) -> bool:
        """Whether the language model can."""
        return not self.why_not_language

    @property
    def why_not(self) -> str:
        """A reason for each of them that doesn't; empty if both do."""
        reasons = {"vision tower": self.why_not_tower, "language model": self.why_not_language}
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)


def use_varlen_attention(model: PreTrainedModel) -> VarlenUse:
    """Let the vision tower and the language model attend by `attend` where that is exact.

    Args:
        model: As `from_pretrained` gives it. Its configuration changes in memory, not in what it saves.

    Returns:
        Which of them do so from now on, and why others don't.
    """
    register()
    return VarlenUse(
        why_not_tower=why_not_tower(model) or _switch(vision_tower(model)),
        why_not_language=why_not_language(model) or _switch(model.get_decoder()),
    )


def _switch(module: Any) -> str:
    """Let a module attend by `attend`, or say why that would be another attention than was chosen."""
    if module.config._attn_implementation not in ("sdpa", NAME):
        return f"it attends with {module.config._attn_implementation}"
    # The public setter would look for a package or a kernel of this name.
    module.config._attn_implementation_internal = NAME
    return ""


def attention_line(model: PreTrainedModel) -> str:
    """Which attention a model uses where, and why `flash_varlen` isn't used where it could have been wanted.

    Args:
        model: As loaded, adapted or not.
    """
    parts: dict[str, Any] = {"vision tower": vision_tower(model), "language model": model.get_decoder()}
    reasons = {"vision tower": why_not_tower(model), "language model": why_not_language(model)}
    said = []
    for name, part in parts.items():
        if part is None:
            continue
        attention = part.config._attn_implementation if isinstance(part, PreTrainedModel) else "its own"
        why = reasons[name]
        if attention == NAME:
            loops = why_in_turn(part)
            why = f"one sequence after another: {loops}" if loops else ""
        elif why == ONE_CALL and attention != "sdpa":
            why = ""  # it was asked for
        said.append(f"{attention} in the {name}" + (f" ({why})" if why else ""))
    return f"Attention: {', '.join(said)}"


def why_in_turn(module: Any) -> str:
    """Why sequences would be computed one after another on a GPU; empty if the kernel takes them.

    Args:
        module: A tower or a language model that attends by `attend`.
    """
    config: Any = module.config
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", 1)
    # Some towers have both: `hidden_size` is then of the language model.
    hidden: Any = getattr(config, "embed_dim", None) or getattr(config, "hidden_size", 0)
    width = getattr(config, "head_dim", None) or hidden // heads
    if width > WIDEST_HEAD:
        return f"the kernel takes no heads of {width} dimensions"
    if getattr(config, "attention_dropout", 0):
        return "the kernel takes no attention_dropout"
    if not kernel_runs_on(module.device):
        return f"{module.device.type} has no FlashAttention"
    return ""


def why_not_tower(model: PreTrainedModel) -> str:
    """Why the vision tower of a model can't attend by lengths, or gains nothing; empty if it may."""
    tower: Any = vision_tower(model)
    if not isinstance(tower, PreTrainedModel):
        return "there is none" if tower is None else "it isn't one of transformers"
    if not passes(tower, "cu_seq_lens_q"):
        return ONE_CALL
    return "" if tower._supports_flash_attn else "transformers has no flash attention for it"


def why_not_language(model: PreTrainedModel) -> str:
    """Why the language model can't attend by lengths exactly; empty if it can."""
    if not hasattr(model, model.base_model_prefix):  # BLIP-2's language model makes its own masks
        return "its language model has a head of its own"
    return why_not_causal(model) or _why_not_by_scores(model.get_decoder())


def _why_not_by_scores(decoder: Any) -> str:
    """What changes its scores besides causal attention, or isn't given to `attend`."""
    config = decoder.config
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its scores (attn_logit_softcapping)"
    changed = [name for name in CHANGES_SCORES if name != "softcap" and passes(decoder, name)]
    if changed:
        return f"its scores have {', '.join(changed)}"
    slides = getattr(config, "sliding_window", None) is not None
    if slides and not passes(decoder, "sliding_window"):
        return "its sliding window is in its masks alone"
    if not (decoder._supports_flash_attn and decoder._supports_attention_backend):
        return "transformers has no flash attention for it"
    return ""
