"""Learning rates scaled by parameter, without effect on schedulers and checkpoints."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ref

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_vlm_callbacks.rates_in_force import scalings

__all__ = ["ScaledRates", "learning_rates"]

Group = dict[str, Any]
"""One of an optimizer's `param_groups`, or a part of one."""

OWN_GROUPS = ("LBFGS", "ZeroRedundancyOptimizer", "PostLocalSGDOptimizer")
"""Optimizers that look past their own `param_groups`, so that rates can't be scaled there for one step."""


class ScaledRates:
    """While an optimizer steps, each of its groups gives way to parts, one for each scale in it.

    Afterwards the same groups are back, with what the optimizer wrote into their parts.

    Args:
        optimizers: Any that read their `param_groups` when they step. All parameters stay in them.
        scale: Gives the factor on the learning rate of a parameter; it is called at each step.
        by_part: Gives the factors in a group by part, for `rates_in_force`; None takes a group for one part.

    >>> import torch
    >>> slow, fast = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([slow, fast], lr=1.0)
    >>> rates = ScaledRates([optimizer], lambda weight: 0.1 if weight is slow else 1.0)
    >>> (slow + fast).backward()
    >>> optimizer.step()
    >>> slow.item(), fast.item(), len(optimizer.param_groups)
    (-0.10000000149011612, -1.0, 1)
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        scale: Callable[[Parameter], float],
        by_part: Callable[[Group], Mapping[str, Sequence[float]]] | None = None,
    ) -> None:
        self._scale = scale
        self._by_part = by_part
        self._split: dict[Optimizer, list[tuple[Group, list[Group]]]] = {}
        self._depth: dict[Optimizer, int] = {}
        self._optimizers = list(optimizers)
        self._hooks = []
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before))
            self._hooks.append(optimizer.register_step_post_hook(self._after))
            # A checkpoint may be saved inside a step, in the forward pass of the optimizer's closure.
            self._hooks.append(optimizer.register_state_dict_pre_hook(self._before_saving))
            self._hooks.append(optimizer.register_state_dict_post_hook(self._after_saving))
            scalings[optimizer] = ref(self)

    def groups(self, optimizer: Optimizer) -> list[Group]:
        """The groups of an optimizer as they are between its steps."""
        if optimizer in self._split:
            return [group for group, _ in self._split[optimizer]]
        return optimizer.param_groups

    def scales(self, group: Group) -> Mapping[str, Sequence[float]]:
        """The scales of a group's parameters, by part."""
        if self._by_part is not None:
            return self._by_part(group)
        return {"": [self._scale(parameter) for parameter in group["params"]]}

    def remove(self) -> None:
        """Stop scaling. Groups that a failed step has left divided are put back."""
        for optimizer, split in self._split.items():
            optimizer.param_groups = [group for group, _ in split]
        self._split.clear()
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers:
            scalings.pop(optimizer, None)

    def _before_saving(self, optimizer: Optimizer) -> None:
        if optimizer in self._split:
            optimizer.param_groups = self.groups(optimizer)

    def _after_saving(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if optimizer in self._split:
            optimizer.param_groups = [part for _, parts in self._split[optimizer] for part in parts]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # If a subclass's `step` calls its parent's, the hooks are called twice, one call inside the other.
        self._depth[optimizer] = self._depth.get(optimizer, 0) + 1
        if self._depth[optimizer] > 1:
            return
        split = [(group, self._parts(group)) for group in optimizer.param_groups]
        self._split[optimizer] = split
        optimizer.param_groups = []
        for _, parts in split:
            optimizer.param_groups += parts

    def _parts(self, group: Group) -> list[Group]:
        by_scale: defaultdict[float, list[Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            by_scale[self._scale(parameter)].append(parameter)
        parts = []
        for scale, parameters in by_scale.items():
            parts.append({**group, "params": parameters, "lr": group["lr"] * scale})
        return parts

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth[optimizer] -= 1
        if self._depth[optimizer] > 0:
            return
        split = self._split.pop(optimizer)
        optimizer.param_groups = [group for group, _ in split]
        for group, parts in split:
            _take_over(optimizer, group, parts)


def _take_over(optimizer: Optimizer, group: Group, parts: Sequence[Group]) -> None:
    """Write into a group what the optimizer wrote into its parts, which must be the same in all of them."""
    keys = set[str]().union(*parts)
    for key in keys - {"params", "lr"}:
        written = [part[key] for part in parts if key in part and part[key] is not group.get(key)]
        if any(value != written[0] for value in written):
            raise MisconfigurationException(
                f"found optimizer {type(optimizer).__name__}, which keeps {key!r} for each group; "
                "with scaled learning rates that isn't one number; use another optimizer"
            )
        if written:
            group[key] = written[0]


def learning_rates(optimizers: Sequence[Optimizer]) -> dict[Parameter, float]:
    """The rate of each parameter before schedules.

    Raises:
        MisconfigurationException: An optimizer has no learning rate, or one that `ScaledRates` can't scale.
    """
    rates = {}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        lacks_rate = any(group.get("lr") is None for group in optimizer.param_groups)
        if name in OWN_GROUPS or lacks_rate:
            raise MisconfigurationException(
                f"found optimizer {name}, whose learning rate can't be scaled by parts; use another one"
            )
        for group in optimizer.param_groups:
            rate = float(group.get("initial_lr", group["lr"]))
            rates.update(dict.fromkeys(group["params"], rate))
    return rates
