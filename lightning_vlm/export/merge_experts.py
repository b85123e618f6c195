"""LoRA merged into the weights that the experts of a layer have in one tensor."""

from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from lightning_vlm.errors import UserError
from lightning_vlm.models.plan.inject import ADAPTER


@torch.no_grad()
def merge_experts(name: str, layer: ParamWrapper) -> tuple[nn.Module, float]:
    """Merge LoRA into all weights of some experts, by PEFT's formula, and hold them against our own.

    Args:
        name: Of the experts, for messages.
        layer: The outermost of PEFT's wrappers, of which there is one for each weight.

    Returns:
        The experts without wrappers, and how far their weights are from `W + scale B A`, as a share of the
        largest.

    Raises:
        UserError: A merged weight isn't finite.
    """
    far = 0.0
    inner: Any = layer
    while isinstance(inner, ParamWrapper):
        weight = inner.get_param()
        expected = weight.double() + expert_change(inner, ADAPTER)
        try:
            inner.merge(safe_merge=True)
        except ValueError as error:
            place = f"{name}.{inner.parameter_name}"
            raise UserError(f"export: {place}: the merged weight isn't finite") from error
        off = (inner.get_param().double() - expected).abs().max() / expected.abs().max()
        far = max(far, float(off))
        inner = inner.base_layer
    return inner, far


def expert_change(layer: Any, adapter: str) -> Tensor:
    """What LoRA adds to the weights of experts: `scale B A` of each, computed one by one in float64.

    PEFT keeps the A of all experts in one matrix, the rows of an expert together, and their B in another,
    whose columns go through all experts for each rank.

    Args:
        layer: PEFT's wrapper of one parameter.
        adapter: The name of the LoRA.

    Returns:
        Tensor of the parameter's shape, [experts, ...], float64.
    """
    experts = len(layer.get_param())
    keeps_inputs_first = getattr(layer.get_base_layer(), "is_transposed", False)
    a = layer.lora_A[adapter].weight.double()
    b = layer.lora_B[adapter].weight.double()
    rank = len(a) // experts
    changes = []
    for expert in range(experts):
        change = b[:, expert::experts] @ a[expert * rank : (expert + 1) * rank]
        changes.append(change.T if keeps_inputs_first else change)
    return layer.scaling[adapter] * torch.stack(changes)
