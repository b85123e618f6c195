"""The check of the attention on the first batch: what the kernel gives is what `sdpa` gives."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.modes import eval_mode
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention.varlen import NAME, compute_dtype

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far the kernel's tower may be from that of `sdpa`, as a share of the norm. Rounding alone makes about a
tenth of this on a deep tower; pictures that see one another make several times as much."""


class VarlenAttentionCheck(Callback):
    """Checks the vision tower's attention on the first batch with pictures."""

    def __init__(self) -> None:
        self._is_done = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if "pixel_values" in batch.inputs:
            self.check_once(pl_module.model, batch.inputs)

    def check_once(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
        """Call `check_varlen_attention` the first time only, and say what it found. Arguments as there."""
        if self._is_done:
            return
        self._is_done = True
        distance = check_varlen_attention(model, inputs)
        if distance is not None:
            rank_zero_info(
                f"The vision tower attends with FlashAttention; it is {distance:.1%} from sdpa here"
            )


def check_varlen_attention(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float | None:
    """Compare the tower's output with that of `sdpa` on the pictures of a batch, where the kernel is in use.

    Args:
        model: One that `use_varlen_attention` was called with.
        inputs: What its forward takes, with pictures, on the device of the model.

    Returns:
        The distance as a share of the norm; None where the kernel isn't in use: on a CPU, and in towers that
        never put several pictures into one row, whose output is the same to the bit.

    Raises:
        UserError: The distance is more than rounding can explain.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or not pixels.is_cuda or _tower_attention(model) != NAME:
        return None
    limit = TOLERANCE.get(compute_dtype(next(model.get_encoder(modality="image").parameters())), 1e-4)
    distance = tower_distance(model, inputs)
    if not distance <= limit:
        raise UserError(
            f"the vision tower gives other features with {NAME} than with sdpa: found a distance of "
            f"{distance:.1%}, expected at most {limit:.1%}; set model.attn_implementation to sdpa"
        )
    return distance or None


@torch.no_grad()
def tower_distance(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> float:
    """How far the tower's output is from that of `sdpa`, as a share of the norm.

    Args:
        model: One that `use_varlen_attention` was called with.
        inputs: What its forward takes, with pictures.
    """
    tower = model.get_encoder(modality="image")
    features: Any = model.base_model.get_image_features
    takes = inspect.signature(features).parameters
    pictures = {name: value for name, value in inputs.items() if name in takes}
    outputs: list[Tensor] = []
    hook = tower.register_forward_hook(lambda _, args, output: outputs.append(output[0].float()))
    try:
        with eval_mode(tower):
            for implementation in ("sdpa", NAME):
                tower.config._attn_implementation_internal = implementation
                features(**pictures)
    finally:
        hook.remove()
        tower.config._attn_implementation_internal = NAME
    expected, found = outputs
    return ((found - expected).norm() / expected.norm()).item()


def _tower_attention(model: PreTrainedModel) -> str | None:
    return model.get_encoder(modality="image").config._attn_implementation
