"""Optimizer groups: each trainable parameter in exactly one, compared by identity and never by value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_vlm_callbacks.selectors import SelectorError, overlaps, select_parameters
from torch import nn

from lightning_vlm.errors import UserError

REST = "rest"
"""Name of the group of all trainable parameters that no selector takes."""
NO_DECAY = ", no decay"
"""What the name of a group ends with that has no weight decay."""


def parameter_groups(
    root: nn.Module,
    learning_rate: float,
    weight_decay: float,
    learning_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of a module as groups for a torch optimizer.

    Biases, norms (all parameters with one dimension or none, and all of modules whose class name ends in
    `Norm`), adapters (a part of the name starts with `lora_`, `ia3_` or `adapter_`) and what has an attribute
    `no_decay` that is true get no weight decay; everything else does, embeddings too. That LoRA gets none is
    a preference, not a rule: decay would pull the product of its
    matrices to zero, that is, the model back to its base, and so with our adapters. IA3's factors
    start at one, so that decay would shrink the model's activations to zero.

    Args:
        root: Any module. Only parameters that require a gradient at the time of the call are looked at.
        learning_rate: The base rate, for all that no selector takes.
        weight_decay: For the parameters that get any.
        learning_rates: Selector -> rate, in place of the base rate. Selectors may overlap only where their
            rates are equal; the parameter then belongs to the first.
    Returns:
        Groups with the keys `params`, `lr`, `weight_decay` and `name` (the selector or "rest", followed by
        ", no decay" for those without), in the order of `learning_rates`, "rest" last. Groups without
        parameters are left out. Parameters keep the order of `root.named_parameters()`, each once.

    Raises:
        UserError: Nothing is trainable; a rate or the decay is out of range; a selector finds nothing, or
            only frozen parameters; a parameter is given two different rates.

    >>> model = nn.ModuleDict({"projector": nn.Linear(2, 2), "language": nn.Linear(2, 2)})
    >>> for group in parameter_groups(model, 1e-4, 0.1, {"projector": 1e-3}):
    ...     print(group["name"], group["lr"], group["weight_decay"], len(group["params"]))
    projector 0.001 0.1 1
    projector, no decay 0.001 0.0 1
    rest 0.0001 0.1 1
    rest, no decay 0.0001 0.0 1
    """
    rates = dict(learning_rates or {})
    if REST in rates:
        raise UserError(f"learning_rates: found {REST!r}, which is what no selector takes; use learning_rate")
    for name, rate in {"learning_rate": learning_rate, **rates}.items():
        if not 0 < rate < math.inf:
            raise UserError(
                f"{name}: found a learning rate of {rate}; expected a number > 0 (freeze what mustn't learn)"
            )
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay: found {weight_decay}; expected a number >= 0")
    trainable = trainable_parameters(root)
    chosen = {selector: trainable_parameters(root, selector) for selector in rates}
    for name, first, selector in overlaps(chosen):
        if rates[first] != rates[selector]:
            raise UserError(
                f"parameter {name!r} is given two learning rates: {rates[first]} by selector {first!r} "
                f"and {rates[selector]} by {selector!r}; write selectors that don't overlap"
            )
    selector_of: dict[int, str] = {}
    for selector, parameters in chosen.items():
        for parameter in parameters.values():
            selector_of.setdefault(id(parameter), selector)
    undecayed = _undecayed(root)
    members: dict[tuple[str, bool], list[nn.Parameter]] = {
        (selector, decays): [] for selector in (*rates, REST) for decays in (True, False)
    }
    for parameter in trainable.values():
        members[selector_of.get(id(parameter), REST), id(parameter) not in undecayed].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates.get(selector, learning_rate),
            "weight_decay": weight_decay if decays else 0.0,
            "name": selector if decays else f"{selector}{NO_DECAY}",
        }
        for (selector, decays), parameters in members.items()
        if parameters
    ]


def groups_without_decay(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of `parameter_groups` for an optimizer that knows no weight decay, such as LBFGS.

    Args:
        groups: Those with decay and those without, by selector.
    Returns:
        One group for each selector, without the key `weight_decay`.

    >>> model = nn.ModuleDict({"projector": nn.Linear(2, 2), "language": nn.Linear(2, 2)})
    >>> for group in groups_without_decay(parameter_groups(model, 1e-4, 0.0, {"projector": 1e-3})):
    ...     print(group["name"], group["lr"], len(group["params"]))
    projector 0.001 2
    rest 0.0001 2
    """
    merged: dict[str, dict[str, Any]] = {}
    for group in groups:
        name = group["name"].removesuffix(NO_DECAY)
        joined = merged.setdefault(name, {"params": [], "lr": group["lr"], "name": name})
        joined["params"] += group["params"]
    return list(merged.values())


def trainable_parameters(root: nn.Module, selector: str | None = None) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient: those that a selector takes, or all.

    Args:
        root: Any module.
        selector: One selector; None for the whole module.
    Returns:
        Parameters by name, each once, in the order of `root.named_parameters()`; at least one.

    Raises:
        UserError: The selector finds nothing, or nothing is trainable.
    """
    found = dict(root.named_parameters()) if selector is None else _select(root, selector)
    trainable = {name: parameter for name, parameter in found.items() if parameter.requires_grad}
    if trainable:
        return trainable
    if selector is None:
        raise UserError(
            f"nothing to train: all {len(found)} parameters are frozen; unfreeze a part or add LoRA adapters"
        )
    raise UserError(
        f"selector {selector!r}: all {len(found)} parameters that it takes are frozen (the first is "
        f"{next(iter(found))!r}); train them, or leave the selector out"
    )


def _select(root: nn.Module, selectors: str | Sequence[str]) -> dict[str, nn.Parameter]:
    try:
        return select_parameters(root, selectors)
    except SelectorError as error:
        raise UserError(str(error)) from None


def _undecayed(root: nn.Module) -> set[int]:
    """Ids of the parameters that get no weight decay."""
    return {
        id(parameter)
        for module_name, module in root.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1
        or name == "bias"
        or type(module).__name__.endswith("Norm")
        or getattr(parameter, "no_decay", False)
        or any(word.startswith(("lora_", "ia3_", "adapter_")) for word in (*module_name.split("."), name))
    }
