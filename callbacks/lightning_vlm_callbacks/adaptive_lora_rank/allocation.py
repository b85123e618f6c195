"""How a budget of rank is shared between modules: pure functions."""

import math
from collections.abc import Mapping

from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["allocate_ranks"]

# Scores below this share of the largest count as this share, so that the search can resolve them.
_LEAST = 1e-12


def allocate_ranks(
    scores: Mapping[str, float],
    budget: int,
    *,
    min_rank: int,
    max_rank: int,
    multiple_of: int,
    costs: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Ranks in proportion to scores, within bounds, that spend a budget.

    The ranks that maximise `Σ score · log rank` within the bounds are `clip(λ · score / cost, min, max)`; λ
    is found by bisection, ranks are rounded down and what is left goes to the largest remainders (ties: the
    higher score, then the name). So nothing depends on the order of the modules, and without costs a higher
    score never gets less rank. (Rounding each module alone would spend more or less
    than the budget.)

    Args:
        scores: Of each module, 0 or more. If all are 0 they count as equal.
        budget: Total rank; or with `costs`, what the ranks may cost in total. More than all modules can take
            is not spent.
        min_rank: Of every module; a multiple of `multiple_of`, may be 0.
        max_rank: Of every module; a multiple of `multiple_of`.
        multiple_of: Ranks are multiples of this; of the total rank the multiple below is spent.
        costs: What one rank of each module costs, `in + out` for a linear layer's parameters. Then less is
            left over than the next step of any module that may still grow costs.

    Raises:
        MisconfigurationException: The bounds don't fit, a score isn't finite or is negative, or the budget is
            less than the smallest ranks cost.

    >>> allocate_ranks({"q": 3.0, "k": 1.0, "v": 0.0}, 24, min_rank=4, max_rank=16, multiple_of=4)
    {'q': 16, 'k': 4, 'v': 4}
    """
    check_bounds(min_rank, max_rank, multiple_of)
    names = sorted(scores)
    for name in names:
        if not (math.isfinite(scores[name]) and scores[name] >= 0):
            raise MisconfigurationException(
                f"scores: found {scores[name]} for {name}; expected a finite number, 0 or more"
            )
    least, most = min_rank // multiple_of, max_rank // multiple_of
    price = {name: multiple_of * (1 if costs is None else costs[name]) for name in names}
    floor = least * sum(price.values())
    if budget < floor:
        raise MisconfigurationException(
            f"budget: found {budget}, but min_rank {min_rank} for {len(names)} modules costs {floor}; "
            "expected at least that, a smaller min_rank, or fewer modules"
        )
    greatest = max(scores.values(), default=0.0) or 1.0
    weight = {name: max(scores[name] / greatest, _LEAST) / price[name] for name in names}

    def shares(level: float) -> dict[str, float]:
        return {name: min(max(level * weight[name], least), most) for name in names}

    def cost(units: Mapping[str, float]) -> float:
        return math.fsum(price[name] * units[name] for name in names)

    low, high = 0.0, most * max((1 / one for one in weight.values()), default=0.0)
    if cost(shares(high)) <= budget:
        low = high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if cost(shares(middle)) <= budget else (low, middle)
    wanted = shares(low)
    units = {name: int(wanted[name]) for name in names}
    left = budget - sum(price[name] * units[name] for name in names)
    queue = sorted(names, key=lambda name: (units[name] - wanted[name], -scores[name], name))
    while queue:  # once, unless costs differ or no module can take what is left
        grown = [name for name in queue if units[name] < most]
        queue = []
        for name in grown:
            if price[name] <= left:
                left -= price[name]
                units[name] += 1
                queue.append(name)
    return {name: units[name] * multiple_of for name in scores}


def check_bounds(min_rank: int, max_rank: int, multiple_of: int) -> None:
    """Raises MisconfigurationException unless bounds and their step fit together."""
    if multiple_of < 1:
        raise MisconfigurationException(f"multiple_of: found {multiple_of}; expected 1 or more")
    if not 0 <= min_rank <= max_rank or max_rank == 0 or min_rank % multiple_of or max_rank % multiple_of:
        raise MisconfigurationException(
            f"min_rank, max_rank: found {min_rank} and {max_rank}; expected multiples of multiple_of "
            f"({multiple_of}), 0 <= min_rank <= max_rank, and max_rank above 0"
        )
