"""The positions of tokens in models that count them along several axes: time, height and width (M-RoPE).

Qwen2-VL (https://arxiv.org/abs/2409.12191) introduced them. The model's own forward finds them from the grids
of the pictures, in a Python loop that waits for the device. Found by the data loader's workers, they cost a
training step nothing, and those of each sample are right wherever it lies in a row.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.data.render.example import Example


class TokenPositions:
    """Finds the positions of a sample's tokens by the model's own `get_rope_index`, without its weights.

    Args:
        model: One with several axes of positions; see `token_positions`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = getattr(model, model.base_model_prefix)
        self._model = without_modules(base)
        self._takes = set(inspect.signature(base.get_rope_index).parameters)

    def __call__(self, example: Example) -> Tensor:
        """Find the positions of a sample.

        Args:
            example: The sample as it is alone.

        Returns:
            Tensor of shape [axes, length], int64.
        """
        inputs = {"input_ids": example.input_ids[None], **example.inputs}
        known = {name: value for name, value in inputs.items() if name in self._takes}
        known.pop("attention_mask", None)
        if "mm_token_type_ids" in self._takes:
            known.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
        positions, _ = self._model.get_rope_index(**known)
        return positions[:, 0]


def token_positions(model: PreTrainedModel) -> TokenPositions | None:
    """What finds the positions of a model's tokens; None for models that count them along one axis."""
    base = getattr(model, model.base_model_prefix, model)
    return TokenPositions(model) if hasattr(base, "get_rope_index") else None


def without_modules(module: Any) -> Any:
    """A copy that has a module's configuration and methods only, and so can go to other processes."""
    bare = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict) and name.startswith("_"):
            bare.__dict__[name] = type(value)()
        elif isinstance(value, Tensor):
            bare.__dict__[name] = None
    return bare
