"""Which models attend by `flash_varlen`, as their classes and configurations say."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.attention.varlen import CHANGES_SCORES, NAME, register
from lightning_vlm.models.parts import vision_tower

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Types of layers that `attend` computes."""


@dataclass(frozen=True)
class VarlenUse:
    """Where a model attends by `flash_varlen`.

    Args:
        tower: Whether the vision tower does.
        language: Whether the language model can, where it is given lengths.
        why_not: A sentence for each of them that doesn't; empty if both do.
    """

    tower: bool
    language: bool
    why_not: str


def use_varlen_attention(model: PreTrainedModel) -> VarlenUse:
    """Let the vision tower and the language model attend by `attend` where that is exact.

    Args:
        model: As `from_pretrained` gives it. Its configuration changes in memory, not in what it saves.

    Returns:
        Which of them do so from now on, and why others don't.
    """
    register()
    reasons = {"vision tower": why_not_tower(model), "language model": why_not_language(model)}
    modules: dict[str, Any] = {"vision tower": vision_tower(model), "language model": model.get_decoder()}
    for name, module in modules.items():
        if not reasons[name]:
            # The public setter would look for a package or a kernel of this name.
            module.config._attn_implementation_internal = NAME
    return VarlenUse(
        tower=not reasons["vision tower"],
        language=not reasons["language model"],
        why_not="; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason),
    )


def why_not_tower(model: PreTrainedModel) -> str:
    """Why the vision tower of a model doesn't attend by lengths; empty if it does."""
    tower: Any = vision_tower(model)
    if tower is None:
        return "there is none"
    if not _mentions(tower, "cu_seq_lens_q"):
        return "each picture or tile has a row of its own, so that there is no loop to save"
    return _why_not_by_transformers(tower)


def why_not_language(model: PreTrainedModel) -> str:
    """Why the language model can't attend by lengths exactly; empty if it can."""
    decoder: Any = model.get_decoder()
    return (
        _why_not_by_config(decoder.config)
        or _why_not_by_transformers(decoder)
        or _why_not_by_layers(decoder)
        or _why_not_by_masks(model, decoder)
    )


def _why_not_by_transformers(module: Any) -> str:
    if not module._supports_flash_attn:
        return "transformers has no flash attention for it"
    if module.config._attn_implementation != "sdpa":
        return f"it attends with {module.config._attn_implementation}"
    return ""


def _why_not_by_config(config: Any) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder and a decoder"
    if getattr(config, "cross_attention_layers", None):
        return "it sees pictures through cross-attention"
    if getattr(config, "is_causal", True) is False:
        return "its tokens see those behind them"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its scores (attn_logit_softcapping)"
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return f"it has layers of {', '.join(sorted(unknown))}"
    return ""


def _why_not_by_layers(decoder: nn.Module) -> str:
    for module in decoder.modules():
        name = type(module).__name__
        if "CrossAttention" in name:
            return f"it sees pictures through cross-attention ({name})"
        if isinstance(module, nn.Conv1d):
            return "it mixes tokens by a convolution along the row"
    changed = [name for name in CHANGES_SCORES if name != "softcap" and _mentions(decoder, name)]
    if changed:
        return f"its scores have {', '.join(changed)}"
    slides = getattr(decoder.config, "sliding_window", None) is not None
    if slides and not _mentions(decoder, "sliding_window"):
        return "its sliding window is in its masks alone"
    if not decoder._supports_attention_backend:
        return "its layers take no lengths"
    return ""


def _why_not_by_masks(model: PreTrainedModel, decoder: nn.Module) -> str:
    """A model that makes the masks of its language model itself lets tokens of a picture see one another."""
    for outer in (model, model.base_model):
        if outer is decoder:
            continue
        made = [name for name in _names(outer) if name.startswith("create_") and "mask" in name]
        if made:
            return "pictures are seen in both directions, or a question is"
    return ""


def _mentions(parent: nn.Module, name: str) -> bool:
    """Whether the forward of a module, or of one inside of it, has a name as an argument or a variable."""
    return any(
        name in _names(module) for module in {type(inside): inside for inside in parent.modules()}.values()
    )


def _names(module: nn.Module) -> set[str]:
    """The names that a module's forward uses, those of the arguments that it passes on among them."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return set(_names_in(code)) if code is not None else set()


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, tuple):  # the names of keyword arguments
            yield from (name for name in constant if isinstance(name, str))
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
