"""Linear layers that take as much memory as quantised ones, on the meta device."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.models.loading.quantize import Quantization, chosen_layers
from lightning_vlm.models.parts import find_parts

BLOCK = 64
"""Weights that share a scale (nf4)."""
SCALES = 256
"""Scales that share a scale of theirs, with double quantisation."""


def nf4_bytes(weights: int, double_quant: bool = True) -> int:
    """What a layer's weights take in nf4: half a byte each and a scale for each block.

    >>> nf4_bytes(4096 * 4096) * 8 / 4096**2, nf4_bytes(4096 * 4096, double_quant=False) * 8 / 4096**2
    (4.12695..., 4.5)
    """
    blocks = -(-weights // BLOCK)
    scales = blocks + 4 * -(-blocks // SCALES) + 4 if double_quant else 4 * blocks
    # With double quantisation there is an offset, and each layer keeps its tables: 16 and 256 numbers.
    return -(-weights // 2) + scales


def int8_bytes(rows: int, columns: int) -> int:
    """What a layer's weights take in int8: a byte each, and a scale for each row."""
    return rows * columns + 4 * rows


class PretendedQuantised(nn.Linear):
    """In place of a layer of bitsandbytes: as it holds and uses memory, without its numbers.

    Args:
        layer: On the meta device.
        quantization: How it would be quantised.
    """

    def __init__(self, layer: nn.Linear, quantization: Quantization) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        is_nf4 = quantization.method == "nf4"
        held = nf4_bytes(layer.weight.numel(), quantization.double_quant)
        if not is_nf4:
            held = int8_bytes(*layer.weight.shape)
        self.count = layer.weight.numel()
        """How many weights it stands for."""
        self.weight = nn.Parameter(torch.empty(held, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias
        self.compute = getattr(torch, quantization.compute_dtype) if is_nf4 else torch.float16
        self.keeps_input = not is_nf4

    def forward(self, x: Tensor) -> Tensor:
        """As `Linear4bit` and `Linear8bitLt`, whose results PEFT copies."""
        shape = self.out_features, self.in_features
        out = _Product.apply(x.to(self.compute), self.weight, shape, self.keeps_input)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out.to(x.dtype).clone()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[int, int], keeps_input: bool) -> Tensor:
        ctx.shape = shape
        ctx.save_for_backward(x if keeps_input else None)
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ grad.new_empty(ctx.shape), None, None, None


def pretend_quantised(model: PreTrainedModel, quantization: Quantization) -> None:
    """Put such layers where bitsandbytes would put its own. In place, before adapters come.

    Args:
        model: On the meta device.
        quantization: Says what and how.

    Raises:
        UserError: As `chosen_layers`.
    """
    for name in chosen_layers(model, quantization, find_parts(model)):
        layer: Any = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, PretendedQuantised(layer, quantization))
