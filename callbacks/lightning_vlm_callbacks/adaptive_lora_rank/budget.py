"""When ranks change, and what each group of layers may spend: the arguments of `AdaptiveLoRARank`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_vlm_callbacks.adaptive_lora_rank.allocation import allocate_ranks
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import LoraLayer
from lightning_vlm_callbacks.run_length import share_of_steps, steps_of_run
from lightning_vlm_callbacks.selectors import overlaps, select_modules

__all__ = [
    "Bounds",
    "check_groups",
    "check_schedule",
    "describe_steps",
    "group_layers",
    "rank_update_steps",
    "share_ranks",
    "split",
]


class Bounds(NamedTuple):
    """What ranks may be.

    Args:
        min_rank: The least rank of every layer.
        max_rank: The most rank of every layer.
        multiple_of: All ranks are multiples of this.
        parameters: Whether budgets are numbers of parameters, else total ranks.
    """

    min_rank: int
    max_rank: int
    multiple_of: int
    parameters: bool

    def cost(self, layers: Mapping[str, LoraLayer]) -> int:
        """What the ranks of some layers cost now."""
        return sum(lora.rank * self.cost_of_rank(lora) for lora in layers.values())

    def cost_of_rank(self, lora: LoraLayer) -> int:
        """What one rank of a layer costs."""
        return lora.cost if self.parameters else 1

    def widest(self, lora: LoraLayer) -> int:
        """The largest rank that is of use to a layer, which is its width."""
        wide = min(lora.layer.in_features, lora.layer.out_features)
        return max(wide // self.multiple_of * self.multiple_of, self.min_rank)


def check_schedule(**times: float) -> None:
    """Raises MisconfigurationException unless each is a share of a run, or a number of steps."""
    for name, value in times.items():
        if not value > 0 or (value > 1 and value != int(value)):
            raise MisconfigurationException(
                f"{name}: found {value}; expected a share of the run below 1, or a number of steps"
            )


def check_groups(groups: Mapping[str, float]) -> None:
    """Raises MisconfigurationException unless each group's share is above 0."""
    for selector, share in groups.items():
        if not share > 0:
            raise MisconfigurationException(f"groups[{selector!r}]: found {share}; expected a number > 0")


def share_ranks(
    scores: Mapping[str, float],
    layers: Mapping[str, LoraLayer],
    groups: Mapping[str, Sequence[str]],
    budgets: Sequence[int],
    bounds: Bounds,
) -> dict[str, int]:
    """The ranks of the layers that train, group by group.

    Args:
        scores: By layer.
        layers: Those that still have an adapter.
        groups: The names of the layers of each group.
        budgets: What each group may spend.
        bounds: The bounds of ranks.

    Raises:
        MisconfigurationException: As in `allocate_ranks`; it names the group.
    """
    ranks: dict[str, int] = {}
    for (group, names), budget in zip(groups.items(), budgets, strict=True):
        with_adapter = {name: layers[name] for name in names if name in layers}
        try:
            ranks |= _ranks_of_group(scores, with_adapter, budget, bounds)
        except MisconfigurationException as error:
            where = f"groups[{group!r}]: " if group else ""
            raise MisconfigurationException(f"AdaptiveLoRARank: {where}{error}") from None
    return ranks


def _ranks_of_group(
    scores: Mapping[str, float], layers: Mapping[str, LoraLayer], budget: int, bounds: Bounds
) -> dict[str, int]:
    """The ranks of the layers of a group that train. Frozen ones keep theirs, which count."""
    train = {name: lora for name, lora in layers.items() if lora.a.requires_grad}
    frozen = {name: lora for name, lora in layers.items() if name not in train}
    scores_that_train = {name: scores[name] for name in train}
    return _ranks_within_widths(scores_that_train, train, budget - bounds.cost(frozen), bounds)


def _ranks_within_widths(
    scores: Mapping[str, float], layers: Mapping[str, LoraLayer], budget: int, bounds: Bounds
) -> dict[str, int]:
    """`allocate_ranks`, but no layer gets more rank than it is wide: what is left goes to the others."""
    ranks = dict[str, int]()
    open_scores = dict(scores)
    while open_scores:
        found = allocate_ranks(
            open_scores,
            budget,
            min_rank=bounds.min_rank,
            max_rank=bounds.max_rank,
            multiple_of=bounds.multiple_of,
            costs={name: bounds.cost_of_rank(layers[name]) for name in open_scores},
        )
        widest = {name: bounds.widest(layers[name]) for name in open_scores}
        full = {name: widest[name] for name, rank in found.items() if rank > widest[name]}
        settled = full or found
        for name, rank in settled.items():
            budget -= rank * bounds.cost_of_rank(layers[name])
            del open_scores[name]
        ranks |= settled
    return {name: ranks[name] for name in scores}


def rank_update_steps(trainer: Trainer, start: float, every: float, until: float) -> list[int]:
    """The numbers of steps made after which ranks may change.

    Args:
        trainer: Whose run it is.
        start: The first one; below 1 a share of the run, else steps.
        every: From one to the next; below 1 a share of the run, else steps.
        until: The last one; below 1 a share of the run, else steps.

    Raises:
        MisconfigurationException: They lie beyond the end of the run, or shares are given of a run whose
            length isn't known; or no step is among them.
    """
    total = steps_of_run(trainer)
    fractions = [value for value in (start, every, until) if value < 1]
    if fractions and total == math.inf:
        raise MisconfigurationException(
            f"start, every, until: found {fractions[0]}, a share of a run that has no end; set max_steps or "
            "max_epochs, or give numbers of steps"
        )

    def in_steps(value: float) -> int:
        return share_of_steps(value, total) if value < 1 else int(value)

    first = in_steps(start)
    last = in_steps(until)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        last = min(last, int(total))
    elif last > total:
        raise MisconfigurationException(
            f"until: found {last}, but the run has {int(total)} steps; expected a step in it, or a share "
            "below 1"
        )
    elif first > last:
        raise MisconfigurationException(f"start: found step {first}, which is after until ({last})")
    return list(range(first, last + 1, in_steps(every)))


def group_layers(
    root: nn.Module, layers: Mapping[str, LoraLayer], groups: Mapping[str, float] | None
) -> dict[str, list[str]]:
    """The names of layers by group; without groups, all layers are one group.

    Args:
        root: The module that selectors refer to.
        layers: By name.
        groups: Selectors.

    Raises:
        MisconfigurationException: A layer is in no group or in two, or a group has none.
        SelectorError: A selector finds nothing.
    """
    if groups is None:
        return {"": list(layers)}
    found = {selector: _layers_inside(root, layers, selector) for selector in groups}
    for selector, inside in found.items():
        if not inside:
            raise MisconfigurationException(f"groups[{selector!r}]: found no LoRA layer in it")
    for name, first, second in overlaps(found):
        raise MisconfigurationException(
            f"groups: found {name} in {first!r} and {second!r}; expected each LoRA layer in one"
        )
    for name in layers:
        if not any(name in inside for inside in found.values()):
            raise MisconfigurationException(
                f"groups: found {name} in none of them; expected each LoRA layer in one"
            )
    return {selector: list(inside) for selector, inside in found.items()}


def _layers_inside(root: nn.Module, layers: Mapping[str, LoraLayer], selector: str) -> dict[str, nn.Module]:
    selected = select_modules(root, selector).values()
    modules = {id(module) for top in selected for module in top.modules()}
    return {name: lora.layer for name, lora in layers.items() if id(lora.layer) in modules}


def describe_steps(steps: Sequence[int]) -> str:
    """How many steps there are, and the first ones.

    >>> describe_steps([3, 5, 7, 9])
    '4 steps: 3, 5, 7 ...'
    """
    first = ", ".join(map(str, steps[:3]))
    more = " ..." if len(steps) > 3 else ""
    return f"{len(steps)} steps: {first}{more}"


def split(total: int, shares: Sequence[float]) -> list[int]:
    """A budget in proportion to shares, to the last unit.

    >>> split(10, [1.0, 2.0])
    [3, 7]
    """
    ends = [round(total * sum(shares[:end]) / sum(shares)) for end in range(len(shares) + 1)]
    return [end - begin for begin, end in pairwise(ends)]
