"""Adapters of PEFT merged into the weights, and what the weights must be afterwards."""

from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.export.prover import bits

TOLERANCE = 1e-5
"""How far outputs in float32 may be off, as a share of the largest."""
_PROBES = 4
"""Random inputs that each merged layer is compared on."""


class Merged(NamedTuple):
    """What is known of a model from before its adapters were merged.

    Args:
        kept: The bits of each weight that merging must not change.
        probes: Of each layer: what went in, [probes, in_features], and what came out with its adapter.
        parameters: How many parameters had something merged into them.
    """

    kept: dict[str, int]
    probes: dict[str, tuple[Tensor, Tensor]]
    parameters: int


def merge(model: PreTrainedModel) -> Merged:
    """Merge LoRA, DoRA, IA3, ... into the weights, by PEFT's own formulas, and put plain layers back.

    Works in place. Only right for weights of 16 or 32 bits: in quantised ones the sum would be rounded again.

    Args:
        model: In float32, after `adapt`, with trained weights.

    Raises:
        UserError: A merged weight isn't finite.
    """
    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    inside = tuple(f"{name}." for name in layers)
    kept = {name: number for name, number in bits(model).items() if not name.startswith(inside)}
    model.eval()  # without dropout
    chance = torch.Generator().manual_seed(0)
    probes, parameters = {}, 0
    with torch.no_grad():
        for name, layer in layers.items():
            base: nn.Linear = layer.get_base_layer()
            given = torch.randn(_PROBES, base.in_features, generator=chance)
            probes[name] = given, layer(given)
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise UserError(f"export: {name}: the merged weight isn't finite") from error
            model.set_submodule(name, base)
            parameters += base.weight.numel()
    if layers:
        del model.peft_config
    return Merged(kept, probes, parameters)


def wrong_weights(model: PreTrainedModel, merged: Merged) -> list[str]:
    """What is wrong with the weights of a model after merging: a few words each, nothing if all is well."""
    now = bits(model)
    wrong = []
    with torch.no_grad():
        for name, (given, expected) in merged.probes.items():
            weight = f"{name}.weight"
            if weight not in now:
                wrong.append(f"{name} is no plain layer")
                continue
            off = (model.get_submodule(name)(given) - expected).abs().max() / expected.abs().max()
            if not off <= TOLERANCE:
                wrong.append(f"{weight} makes its layer differ by {off:.1e}")
    layers = tuple(f"{name}." for name in merged.probes)
    for name in sorted(now | merged.kept):
        if name not in now or (name not in merged.kept and not name.startswith(layers)):
            wrong.append(f"{name} is {'missing' if name not in now else 'no weight of the model'}")
        elif name in merged.kept and now[name] != merged.kept[name]:
            wrong.append(f"{name} changed")
    wrong += [f"{name} isn't finite" for name, one in model.named_parameters() if not one.isfinite().all()]
    return wrong
