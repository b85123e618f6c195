"""The learning rates that optimizers really step with, by the names of their groups."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Scaling", "rates_in_force", "scalings"]

Group = dict[str, Any]


class Scaling(Protocol):
    """What scales the learning rates of an optimizer while it steps."""

    def groups(self, optimizer: Optimizer) -> list[Group]:
        """The optimizer's groups as they are between steps."""

    def scales(self, group: Group) -> Mapping[str, Sequence[float]]:
        """The scales of a group's parameters that train now, by the name of the part that they are in.

        The name is empty where the whole group is meant.
        """


scalings: "WeakKeyDictionary[Optimizer, ReferenceType[Scaling]]" = WeakKeyDictionary()
"""What scales the rates of an optimizer, as long as it does; it registers itself."""


def rates_in_force(optimizers: Sequence[Optimizer]) -> dict[str, float | Tensor]:
    """The learning rate of each group at this moment, scales of stages included.

    Args:
        optimizers: Those of a Trainer. Groups may carry a `name`.

    Returns:
        `lr/<name>` for each group. A group without a name has its number instead, or is just `lr` where it
        is the only one. A group whose parts are scaled apart has `lr/<name>/<part>` for each part that
        trains. If there are several rates within a part, that is the highest, and `lr/<name>/<part>/lowest`
        the lowest.

    >>> import torch
    >>> weight, bias = torch.nn.Linear(2, 2).parameters()
    >>> rates_in_force([torch.optim.SGD([weight, bias], lr=0.1)])
    {'lr': 0.1}
    >>> groups = [{"params": [weight], "name": "head"}, {"params": [bias], "lr": 0.2}]
    >>> rates_in_force([torch.optim.SGD(groups, lr=0.1)])
    {'lr/head': 0.1, 'lr/1': 0.2}
    """
    groups = [scaled for optimizer in optimizers for scaled in _scaled_groups(optimizer)]
    rates: dict[str, float | Tensor] = {}
    names: set[str] = set()
    for number, (scaling, group) in enumerate(groups):
        name = str(group.get("name", number if len(groups) > 1 else ""))
        if name in names:
            name = f"{name}/{number}"
        names.add(name)
        scales = {"": [1.0]} if scaling is None else scaling.scales(group)
        for part, of_part in scales.items():
            key = "/".join(word for word in ("lr", name, part) if word)
            rates[key] = group["lr"] * max(of_part)
            if min(of_part) < max(of_part):
                rates[f"{key}/lowest"] = group["lr"] * min(of_part)
    return rates


def _scaled_groups(optimizer: Optimizer) -> list[tuple[Scaling | None, Group]]:
    """The groups with a learning rate, as they are between steps, and what scales them."""
    reference = scalings.get(optimizer)
    scaling = None if reference is None else reference()
    groups = optimizer.param_groups if scaling is None else scaling.groups(optimizer)
    return [(scaling, group) for group in groups if "lr" in group]
