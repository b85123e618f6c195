"""Whether a mixture of experts gets a load-balancing loss, and what is said of it at the start of a fit."""

from collections.abc import Sequence
from typing import Any, Literal

from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.experts import (
    Mixture,
    balances_itself,
    expert_parameters,
    router_parameters,
)
from lightning_vlm.models.loading.quantize import quantised_layers
from lightning_vlm.models.plan.inject import ADAPTER


def aux_loss_weight(model: PreTrainedModel, asked_for: float | bool | Literal["auto"]) -> float:
    """The weight of the load-balancing loss in a fit.

    With frozen routers nothing but the states that they read could follow it, at the cost of what these are
    for; and where learned biases balance experts, there was no such loss in pretraining (DeepSeek-V3,
    https://arxiv.org/abs/2412.19437), or one within sequences.

    Args:
        model: Adapted.
        asked_for: As `ExpertBalance` takes it.
    """
    if asked_for != "auto":
        return float(asked_for)
    trains = any(weight.requires_grad for weight in router_parameters(model).values())
    return _published(model) if trains and not balances_itself(model) else 0.0


def describe_experts(model: PreTrainedModel, mixtures: Sequence[Mixture], weight: float) -> str:
    """What of a mixture trains, and whether the loss is added: a line for the start of a fit.

    Args:
        model: Adapted.
        mixtures: Its mixtures.
        weight: Of the loss, in force.
    """
    first = mixtures[0]
    parts = [f"Experts: {len(mixtures)} times {first.number}, {first.top_k} for a token", _experts(model)]
    routers = router_parameters(model)
    trains = any(one.requires_grad for one in routers.values())
    if trains:
        parts.append("routers train")
    else:
        parts.append("routers are frozen (language.routers: full in model.adapt trains them)")
    parts.append(_loss(model, trains, weight))
    if quantised_layers(model):
        size = sum(one.numel() for one in expert_parameters(model).values())
        parts.append(f"their {size:,} weights stay in 16 or 32 bits, as only linear layers are quantised")
    return "; ".join(parts)


def _experts(model: nn.Module) -> str:
    wrappers: list[Any] = [module for module in model.modules() if isinstance(module, ParamWrapper)]
    if wrappers:
        ranks = sorted({wrapper.r[ADAPTER] for wrapper in wrappers})
        text = f"LoRA of rank {', '.join(map(str, ranks))} in each"
        return text + (", without dropout" if _has_dropout(model) else "")
    trains = any(one.requires_grad for one in expert_parameters(model).values())
    return "they train in full" if trains else "they are frozen"


def _has_dropout(model: nn.Module) -> bool:
    layers = [getattr(module, "lora_dropout", {}) for module in model.modules()]
    return any(isinstance(one, nn.Dropout) for layer in layers for one in layer.values())


def _loss(model: PreTrainedModel, trains: bool, weight: float) -> str:
    if weight:
        return f"the load-balancing loss is added, times {weight:g} (train/aux_loss)"
    if balances_itself(model):
        return "no load-balancing loss, as learned biases balance them, which stay as they are"
    published = _published(model)
    if trains and not published:
        return "no load-balancing loss, as the model's configuration has no weight for one"
    return f"no load-balancing loss (model.router_aux_loss: {published or 0.001:g} would add it)"


def _published(model: PreTrainedModel) -> float:
    """The weight of the loss in a model's configuration; 0 if there is none."""
    config: Any = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0)
