"""When ranks change, and what each group of layers may spend: the arguments of `AdaptiveLoRARank`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_vlm_callbacks.adaptive_lora_rank.allocation import allocate_ranks
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import Lora
from lightning_vlm_callbacks.run_length import share_of_steps, steps_of_run
from lightning_vlm_callbacks.selectors import select_modules

__all__ = ["Bounds", "group_layers", "rank_update_steps", "ranks_within", "shares"]


class Bounds(NamedTuple):
    """What ranks may be.

    Args:
        min_rank: Of every layer.
        max_rank: Of every layer.
        multiple_of: All ranks are multiples of this.
        parameters: Whether budgets are numbers of parameters, else total ranks.
    """

    min_rank: int
    max_rank: int
    multiple_of: int
    parameters: bool

    def cost(self, layers: Mapping[str, Lora]) -> int:
        """What the ranks of some layers cost now."""
        return sum(lora.rank * (lora.cost if self.parameters else 1) for lora in layers.values())


def ranks_within(
    scores: Mapping[str, float], layers: Mapping[str, Lora], budget: int, bounds: Bounds
) -> dict[str, int]:
    """`allocate_ranks`, but no layer gets more rank than it is wide, for which it has no use.

    Args:
        scores: By layer.
        layers: The same ones.
        budget: What they may cost.
        bounds: The bounds of ranks.

    Raises:
        MisconfigurationException: As in `allocate_ranks`.
    """
    left, ranks = dict(scores), dict[str, int]()
    unit = bounds.multiple_of
    while left:
        costs = {name: layers[name].cost for name in left} if bounds.parameters else None
        found = allocate_ranks(
            left, budget, min_rank=bounds.min_rank, max_rank=bounds.max_rank, multiple_of=unit, costs=costs
        )
        full = {}
        for name, rank in found.items():
            layer = layers[name].layer
            widest = min(layer.in_features, layer.out_features) // unit * unit
            if rank > max(widest, bounds.min_rank):
                full[name] = max(widest, bounds.min_rank)
        ranks |= full or found
        for name in full or found:
            budget -= ranks[name] * (costs[name] if costs else 1)
            del left[name]
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
    shares = [value for value in (start, every, until) if value < 1]
    if shares and total == math.inf:
        raise MisconfigurationException(
            f"start, every, until: found {shares[0]}, a share of a run that has no end; set max_steps or "
            "max_epochs, or give numbers of steps"
        )
    first, step, last = (
        share_of_steps(value, total) if value < 1 else int(value) for value in (start, every, until)
    )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        last = min(last, int(total))
    elif last > total:
        raise MisconfigurationException(
            f"until: found {last}, but the run has {int(total)} steps; expected a step in it, or a share "
            "below 1"
        )
    elif first > last:
        raise MisconfigurationException(f"start: found step {first}, which is after until ({last})")
    return list(range(first, last + 1, step))


def group_layers(
    root: nn.Module, layers: Mapping[str, Lora], groups: Mapping[str, float] | None
) -> dict[str, list[str]]:
    """The names of layers by group; without groups, all layers are one group.

    Args:
        root: The module that selectors speak of.
        layers: By name.
        groups: Selectors.

    Raises:
        MisconfigurationException: A layer is in no group or in two, or a group has none.
        SelectorError: A selector finds nothing.
    """
    if groups is None:
        return {"": list(layers)}
    found: dict[str, list[str]] = {}
    for selector in groups:
        inside = {id(one) for top in select_modules(root, selector).values() for one in top.modules()}
        found[selector] = [name for name, lora in layers.items() if id(lora.layer) in inside]
        if not found[selector]:
            raise MisconfigurationException(f"groups[{selector!r}]: found no LoRA layer in it")
    for name in layers:
        of = [selector for selector, names in found.items() if name in names]
        if len(of) != 1:
            what = f"{name} in {' and '.join(map(repr, of))}" if of else f"{name} in none of them"
            raise MisconfigurationException(f"groups: found {what}; expected each LoRA layer in one")
    return found


def shares(total: int, groups: Sequence[float]) -> list[int]:
    """A budget in proportion, to the last unit.

    >>> shares(10, [1.0, 2.0])
    [3, 7]
    """
    ends = [round(total * sum(groups[:i]) / sum(groups)) for i in range(len(groups) + 1)]
    return [end - begin for begin, end in pairwise(ends)]
