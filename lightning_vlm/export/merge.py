"""Adapters of PEFT merged into the weights, each compared with the layer that it was."""

from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.export.fresh_process import TOLERANCE, bits
from lightning_vlm.export.merge_experts import merge_experts
from lightning_vlm.export.verification import require_same

_PROBES = 4
"""Random inputs that each merged layer is compared on."""


def merge(model: PreTrainedModel) -> int:
    """Merge LoRA, DoRA, IA3, ... into the weights, by PEFT's own formulas, and put plain layers back.

    Works in place. Only right for weights of 16 or 32 bits: in quantised ones the sum would be rounded again.

    Args:
        model: In float32, after `adapt`, with trained weights.
    Returns:
        How many parameters had something merged into them.

    Raises:
        UserError: A weight isn't finite, a layer computes something else than with its adapter, or a weight
            beside the merged ones has changed.
    """
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        # Experts have a wrapper for each of their parameters, one in the other; the outer merges all.
        if isinstance(module, BaseTunerLayer) and not name.endswith(".base_layer"):
            layers[name] = module
    inside = tuple(f"{name}." for name in layers)
    before = bits(model)
    model.eval()  # without dropout
    generator = torch.Generator().manual_seed(0)
    problems = []
    parameters = 0
    for name, layer in layers.items():
        if isinstance(layer, ParamWrapper):
            base, off = merge_experts(name, layer)
        else:
            base, off = layer.get_base_layer(), _merge_layer(name, layer, generator)
        if not off <= TOLERANCE:
            problems.append(f"{name}.weight makes its layer differ by {off:.1e}")
        model.set_submodule(name, base)
        parameters += sum(weight.numel() for weight in base.parameters() if weight.ndim > 1)
    if layers:
        del model.peft_config
    after = bits(model)
    for name, number in before.items():
        if not name.startswith(inside) and after.get(name) != number:
            problems.append(f"{name} changed")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            problems.append(f"{name} isn't finite")
    require_same(problems)
    return parameters


@torch.no_grad()
def _merge_layer(name: str, layer: Any, generator: torch.Generator) -> float:
    """Merge one layer in place; how far its outputs are off, as a share of the largest."""
    base: nn.Linear = layer.get_base_layer()
    inputs = torch.randn(_PROBES, base.in_features, generator=generator)
    expected = layer(inputs)
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:
        raise UserError(f"export: {name}: the merged weight isn't finite") from error
    off = (base(inputs) - expected).abs().max()
    return float(off / expected.abs().max())
