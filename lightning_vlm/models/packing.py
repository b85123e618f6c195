"""Whether samples can share a row of a model unseen by one another, as its classes and configuration say.

Packed samples are kept apart by their positions, which begin again with each of them: from those the masks of
transformers are made, and the lengths that flash attention takes. Whatever else looks along a row would see
from one sample into the next. What can't be known from here is found by the proof that a run begins with.
"""

import dis
import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from lightning_vlm.models.causal import why_not_causal
from lightning_vlm.models.forwards import codes, makes_masks


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why packed samples would see one another in a model.

    Args:
        model: As loaded and adapted; its weights aren't read and may be on the meta device.

    Returns:
        What it is in the model, to stand behind "packed can't be exact for"; None if nothing is known.

    >>> from lightning_vlm.models.loading.load import load_model
    >>> why_not_packed(load_model("drawn-vlm").model)
    """
    decoder: Any = model.get_decoder()
    why = (
        why_not_causal(model)
        or _why_not_by_config(decoder.config)
        or _why_not_by_masks(decoder)
        or _why_not_by_positions(model, decoder)
    )
    return f"{type(model).__name__}: {why}" if why else None


def _why_not_by_config(config: Any) -> str:
    if getattr(config, "expert_capacity", None):
        return "its experts drop tokens beyond their capacity (expert_capacity)"
    if getattr(config, "alibi", False):
        return "it counts distances along the row (alibi)"
    return ""


def _why_not_by_masks(decoder: PreTrainedModel) -> str:
    if not makes_masks(decoder):
        return "its masks aren't made from positions"
    attention = decoder.config._attn_implementation
    if attention not in ALL_MASK_ATTENTION_FUNCTIONS:
        return f"transformers makes no masks for its attention, {attention}"
    return ""


def _why_not_by_positions(model: PreTrainedModel, decoder: nn.Module) -> str:
    base: Any = getattr(model, model.base_model_prefix, model)
    for module in (base, decoder):
        if "position_ids" not in inspect.signature(module.forward).parameters:
            return "it takes no position_ids"
    if hasattr(base, "get_rope_index") and not _takes_four_axes(decoder):
        return "it has no axis of positions that masks are made from"
    return ""


def _takes_four_axes(decoder: nn.Module) -> bool:
    """Whether a forward asks for positions along 4 axes: the place in the sample, then those of M-RoPE."""
    values = {step.argval for code in codes(decoder) for step in dis.get_instructions(code)}
    return 4 in values
