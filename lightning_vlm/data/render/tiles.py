"""Pictures whose tiles a processor keeps together, though the model takes one after the other."""

from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

KEEP_TILES = ("PerceptionLMProcessor",)
"""Processors that give each picture or video as [tiles, 3, height, width], and can't join those of several
numbers of tiles. Their models don't ask which tile is whose."""


def tensors_of(processor: ProcessorMixin, **options: Any) -> dict[str, Any]:
    """What a processor makes of a text and its media, as tensors.

    Args:
        processor: Any.
        options: What it is called with.
    """
    if type(processor).__name__ not in KEEP_TILES:
        return dict(processor(**options, return_tensors="pt"))
    return {name: _tensor(value) for name, value in processor(**options).items()}


def _tensor(value: Any) -> Tensor:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return torch.cat(value)[:, None]  # each tile as a picture of one
    return torch.as_tensor(value)
