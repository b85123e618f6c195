"""PEFT's adapters, put into the layers that a plan has chosen."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.compat.peft import names_as_they_are
from lightning_vlm.models.plan.methods import IA3, LoraSettings

ADAPTER = "default"
"""Name of the injected adapter, as PEFT calls it by default."""
IA3_MODULES = ("k_proj", "v_proj", "down_proj", "fc2", "linear_fc2")
"""Keys, values and the last of an MLP, as the families call them."""
_IA3_FEEDFORWARD = ("down_proj", "fc2", "linear_fc2")


class ExpertLora(NamedTuple):
    """LoRA on the weights of all experts of a layer.

    Args:
        settings: As in the plan.
        rank: In each expert.
    """

    settings: LoraSettings
    rank: int


def inject_lora(
    model: PreTrainedModel,
    layers: Mapping[str, LoraSettings],
    experts: Mapping[str, ExpertLora] | None = None,
) -> None:
    """Give layers LoRA, in place.

    Args:
        model: Without adapters of PEFT.
        layers: Name of each linear layer -> its settings, which may differ in rank, alpha and dropout.
        experts: Name of each parameter that holds the weights of a layer's experts -> its LoRA.
    """
    experts = experts or {}
    ranks = {name: settings.r for name, settings in layers.items()}
    alphas = {name: settings.scale for name, settings in layers.items()}
    ranks |= {name: lora.rank for name, lora in experts.items()}
    alphas |= {name: lora.settings.expert_scale(lora.rank) for name, lora in experts.items()}
    patterns = {name: f"^{re.escape(name)}" for name in ranks}  # PEFT adds `$` but not `^`
    first = next(iter([*layers.values(), *(lora.settings for lora in experts.values())]))
    config = LoraConfig(
        r=first.r,
        lora_alpha=first.scale,  # type: ignore[arg-type]
        lora_dropout=0.0 if experts else first.dropout,  # PEFT refuses any beside experts; see below
        target_modules=_pattern(layers) if layers else [],
        target_parameters=sorted(experts) or None,
        rank_pattern={patterns[name]: rank for name, rank in ranks.items()},
        alpha_pattern={patterns[name]: alpha for name, alpha in alphas.items()},
        use_rslora=first.rslora,
        use_dora=first.dora,
        init_lora_weights=True if first.init == "default" else first.init,  # type: ignore[arg-type]
    )
    # A checkpoint holds only A and B, so the base weights must change in the same way when it is loaded;
    # but the fast decomposition of `pissa_niter` begins with random directions.
    with torch.random.fork_rng(devices=[], enabled=first.changes_base):
        if first.changes_base:
            torch.manual_seed(0)
        with warnings.catch_warnings(), names_as_they_are():
            # PEFT looks for the names of parameters among those of modules, after it has used them.
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
            warnings.filterwarnings("ignore", "The following alpha_pattern keys did not match")
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, settings in layers.items():  # a LoraConfig has only one dropout
        layer: Any = model.get_submodule(name)
        layer.lora_dropout[ADAPTER] = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
    cast_adapter_dtype(model, ADAPTER)


def inject_ia3(model: PreTrainedModel, layers: Mapping[str, IA3]) -> None:
    """Give layers IA3, in place.

    Args:
        model: Without adapters of PEFT.
        layers: Name of each linear layer -> its settings.
    """
    scaled_inputs = []
    for name, settings in layers.items():
        feedforward = _IA3_FEEDFORWARD if settings.feedforward is None else settings.feedforward
        if last_name(name) in feedforward:
            scaled_inputs.append(name)
    config = IA3Config(target_modules=_pattern(layers), feedforward_modules=_pattern(scaled_inputs) or [])
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    cast_adapter_dtype(model, ADAPTER)


def last_name(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def _pattern(names: Mapping[str, Any] | Sequence[str]) -> str:
    """A regular expression for whole names, as which PEFT takes a string."""
    return "|".join(map(re.escape, names))
