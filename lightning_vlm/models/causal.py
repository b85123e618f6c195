"""Whether tokens see others by causal attention alone, as a model's classes and configuration say.

Where they do, the samples of a row are kept apart by lengths, or by positions that begin again with each.
What can't be known from here is found by the proof that a packed run begins with.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.forwards import makes_masks

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Types of layers whose attention follows from lengths, and whose masks from positions."""


def why_not_causal(model: PreTrainedModel) -> str:
    """What else there is in a model by which a token sees others; empty if nothing is known.

    Args:
        model: As loaded or adapted; its weights aren't read and may be on the meta device.
    """
    decoder: Any = model.get_decoder()
    return (
        _why_not_by_config(model.config)
        or _why_not_by_config(decoder.config)
        or _why_not_by_layers(decoder)
        or _why_not_by_masks(model, decoder)
    )


def _why_not_by_config(config: Any) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder and a decoder"
    if getattr(config, "cross_attention_layers", None):
        return "its tokens see pictures by cross-attention"
    if getattr(config, "is_causal", True) is False:
        return "its tokens see those behind them"
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return f"it has layers of {', '.join(sorted(unknown))}"
    return ""


def _why_not_by_layers(decoder: nn.Module) -> str:
    for module in decoder.modules():
        if "CrossAttention" in type(module).__name__:
            return "its tokens see pictures by cross-attention"
        if isinstance(module, nn.Conv1d):
            return "it mixes tokens by a convolution along the row"
    return ""


def _why_not_by_masks(model: PreTrainedModel, decoder: nn.Module) -> str:
    """Masks that a language model doesn't make itself let some tokens see those behind."""
    for outer in (model, model.base_model):
        if outer is not decoder and makes_masks(outer):
            return "tokens of a picture or a question see those behind them"
    return ""
