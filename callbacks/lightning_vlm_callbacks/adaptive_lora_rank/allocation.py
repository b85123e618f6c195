"""How a budget of rank is shared between modules: pure functions."""

import math
from collections.abc import Mapping

from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["allocate_ranks"]

_LEAST_SHARE = 1e-12
"""Scores below this share of the largest count as this share, so that the search can resolve them."""


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
    score never gets less rank. (Rounding each module alone would spend more or less than the budget.)

    Args:
        scores: Of each module, 0 or more. If all are 0 they count as equal.
        budget: Total rank; or with `costs`, what the ranks may cost in total. More than all modules can take
            is not spent.
        min_rank: Of every module; a multiple of `multiple_of`, may be 0.
        max_rank: Of every module; a multiple of `multiple_of`.
        multiple_of: Ranks are multiples of this; of the total rank the multiple below is spent.
        costs: What one rank of each module costs, `in + out` for a linear layer's parameters. Then less is
            left over than the next step of any module that may still grow costs.

    Returns:
        The rank of each module, in the order of the scores.

    Raises:
        MisconfigurationException: The bounds don't fit, a score isn't finite or is negative, or the budget is
            less than the smallest ranks cost.

    >>> allocate_ranks({"q": 3.0, "k": 1.0, "v": 0.0}, 24, min_rank=4, max_rank=16, multiple_of=4)
    {'q': 16, 'k': 4, 'v': 4}
    """
    check_bounds(min_rank, max_rank, multiple_of)
    _check_scores(scores)
    names = sorted(scores)
    least = min_rank // multiple_of
    most = max_rank // multiple_of
    price = {name: multiple_of * (1 if costs is None else costs[name]) for name in names}
    floor = least * sum(price.values())
    if budget < floor:
        raise MisconfigurationException(
            f"budget: found {budget}, but min_rank {min_rank} for {len(names)} modules costs {floor}; "
            "expected at least that, a smaller min_rank, or fewer modules"
        )
    greatest = max(scores.values(), default=0.0) or 1.0
    weight = {name: max(scores[name] / greatest, _LEAST_SHARE) / price[name] for name in names}
    wanted = _proportional(weight, price, budget, least, most)
    units = {name: int(share) for name, share in wanted.items()}
    by_remainder = sorted(names, key=lambda name: (units[name] - wanted[name], -scores[name], name))
    _spend_rest(units, price, budget, most, by_remainder)
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


def _check_scores(scores: Mapping[str, float]) -> None:
    for name, score in sorted(scores.items()):
        if not (math.isfinite(score) and score >= 0):
            raise MisconfigurationException(
                f"scores: found {score} for {name}; expected a finite number, 0 or more"
            )


def _proportional(
    weight: Mapping[str, float], price: Mapping[str, int], budget: int, least: int, most: int
) -> dict[str, float]:
    """`clip(λ · weight, least, most)` at the largest λ at which it costs no more than the budget."""

    def shares(level: float) -> dict[str, float]:
        return {name: min(max(level * weight[name], least), most) for name in weight}

    def fits(level: float) -> bool:
        units = shares(level)
        return math.fsum(price[name] * units[name] for name in weight) <= budget

    low = 0.0
    high = most * max((1 / share for share in weight.values()), default=0.0)
    if fits(high):
        return shares(high)
    while True:
        middle = (low + high) / 2
        if not low < middle < high:  # no floating point number lies between the two
            return shares(low)
        if fits(middle):
            low = middle
        else:
            high = middle


def _spend_rest(
    units: dict[str, int], price: Mapping[str, int], budget: int, most: int, queue: list[str]
) -> None:
    """Give one unit after another to the modules of a queue in turn, as long as the budget allows it.

    There is one turn only, unless costs differ or some module can't take what is left.
    """
    left = budget - sum(price[name] * units[name] for name in units)
    while queue:
        queue = [name for name in queue if units[name] < most]
        for name in list(queue):
            if price[name] <= left:
                left -= price[name]
                units[name] += 1
            else:
                queue.remove(name)
