"""What a family does to its logits after the head: a small table, for not all keep to the text config."""

from typing import NamedTuple

from transformers import PreTrainedModel

SOFTCAPPED = ("paligemma", "gemma3n", "gemma4")
"""Model types whose forward bounds logits by the text config's `final_logit_softcapping`."""

DIVIDED, MULTIPLIED = ("granite4_vision",), ("hyperclovax_vision_v2",)
"""Model types whose forward divides, or multiplies, logits by the text config's `logits_scaling`."""


class LogitOptions(NamedTuple):
    """Logits are `softcap * tanh(z / softcap)` with `z = logit_scale * head(hidden)`."""

    softcap: float | None
    logit_scale: float


def logit_options(model: PreTrainedModel) -> LogitOptions:
    """How a model's own forward turns the output of its head into logits.

    Others than those in the tables use the head's output as it is, whatever the text model inside would do by
    itself: LLaVA-NeXT around Granite, Aya Vision around Cohere.
    """
    kind, text = model.config.model_type, model.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None) if kind in SOFTCAPPED else None
    scale = 1.0
    if kind in DIVIDED:
        scale = 1 / text.logits_scaling
    elif kind in MULTIPLIED:
        scale = text.logits_scaling
    return LogitOptions(softcap, scale)
