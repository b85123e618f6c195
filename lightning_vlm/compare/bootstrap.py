"""Confidence intervals by bootstrap: of what is made of sums over samples, and of differences between two.

Samples are drawn again with replacement. All that is measured on them, of all models, comes from the same
draws, so that intervals of differences are those of pairs. Samples that share a picture are drawn together.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

LEVEL = 0.95
"""How often an interval should hold what is true."""
RESAMPLES = 2000
"""How often samples are drawn again."""
FEWER_RESAMPLES = 500
"""How often where what is made of them takes long, as BLEU does."""
SEED = 0
_AT_ONCE = 4_000_000
"""So many numbers are held at once while samples are drawn."""
_BLOCKS = 200
"""Into how many parts samples are divided where each part is left out once, if that takes time."""

Numbers = NDArray[np.float64]


class Interval(NamedTuple):
    """From where to where; both ends may be what is true."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside.

        >>> Interval(0.1, 0.2).excludes_zero, Interval(0.0, 0.2).excludes_zero
        (True, False)
        """
        return self.low > 0 or self.high < 0


class Sums(NamedTuple):
    """What is added up over samples, in columns.

    Args:
        total: Over all samples; shape [columns].
        draws: Over samples that were drawn again; shape [resamples, columns].
        rows: Over each group of samples that is drawn together; shape [groups, columns].
    """

    total: Numbers
    draws: Numbers
    rows: Numbers

    def columns(self, start: int, stop: int) -> "Sums":
        """Some of the columns."""
        return Sums(self.total[start:stop], self.draws[:, start:stop], self.rows[:, start:stop])


def add_up(rows: Numbers, groups: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = SEED) -> Sums:
    """Add up over all samples, and over samples that are drawn again.

    Args:
        rows: What each sample adds; shape [samples, columns].
        groups: Of each sample, what it shares with those that are drawn together with it.
        resamples: How often samples are drawn again, as many groups as there are.
        seed: Of the draws.

    >>> sums = add_up(np.array([[1.0], [3.0], [5.0]]), "aab", resamples=3)
    >>> sums.total.tolist(), sums.rows.tolist(), sums.draws.shape
    ([9.0], [[4.0], [5.0]], (3, 1))
    """
    numbers: dict[Hashable, int] = {}
    of = [numbers.setdefault(group, len(numbers)) for group in groups]
    together = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(together, of, rows)
    count = len(together)
    random = np.random.default_rng(seed)
    draws = np.empty((resamples, rows.shape[1]))
    step = max(1, _AT_ONCE // max(count * rows.shape[1], 1))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = random.integers(0, count, (stop - start, count))
        draws[start:stop] = together[drawn].sum(1)
    return Sums(together.sum(0), draws, together)


class Values(NamedTuple):
    """A value of sums, and what it is of samples that were drawn again.

    Args:
        point: Of all samples; NaN where there is none.
        draws: Of each draw.
        without: With each group of samples left out, or each part of them.
    """

    point: float
    draws: Numbers
    without: Numbers

    def minus(self, other: "Values") -> "Values":
        """The difference from a value on the same samples."""
        return Values(self.point - other.point, self.draws - other.draws, self.without - other.without)


def values_of(sums: Sums, value: Callable[[Numbers], Numbers], is_slow: bool = False) -> Values:
    """What a value is of sums.

    Args:
        sums: As from `add_up`.
        value: Makes values of sums, of shape [many, columns] in, of shape [many] out; NaN where there is
            none.
        is_slow: Whether a value takes long: fewer draws are taken then, and parts of the samples left out.
    """
    draws, left_out = sums.draws, sums.rows
    if is_slow:
        draws = draws[:FEWER_RESAMPLES]
        if len(left_out) > _BLOCKS:
            left_out = np.stack([part.sum(0) for part in np.array_split(left_out, _BLOCKS)])
    (point,) = value(sums.total[None])
    return Values(float(point), value(draws), value(sums.total - left_out))


def interval(values: Values, level: float = LEVEL) -> Interval | None:
    """The interval of a value, by the bias-corrected and accelerated bootstrap (BCa, Efron 1987).

    Returns:
        None where there are fewer than two groups of samples, or no value.
    """
    draws, without = values.draws[~np.isnan(values.draws)], values.without[~np.isnan(values.without)]
    if np.isnan(values.point) or len(values.without) < 2 or len(draws) < 2:
        return None
    low, high = _bca(values.point, draws, without, level)
    return Interval(low, high)


def _bca(point: float, draws: Numbers, without: Numbers, level: float) -> tuple[float, float]:
    """The interval of a value from those of draws, and those with a part of the samples left out."""
    if (draws == draws[0]).all():
        return float(draws[0]), float(draws[0])
    below = (np.mean(draws < point) + np.mean(draws <= point)) / 2
    bias = ndtri(below)
    away = (len(without) - 1) * (without.mean() - without) if len(without) else np.zeros(1)
    spread = (away**2).sum()
    acceleration = (away**3).sum() / (6 * spread**1.5) if spread else 0.0
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    shares = tails
    if np.isfinite(bias):
        moved = bias + ndtri(tails)
        shares = ndtr(bias + moved / (1 - acceleration * moved))
    low, high = np.quantile(draws, shares)
    return float(low), float(high)


def exact_edge(count: int, is_top: bool, level: float = LEVEL) -> Interval:
    """The interval of a share that is 0 or 1 in all of some samples, where drawing again shows no spread.

    It is that of Clopper and Pearson (1934).

    >>> exact_edge(20, is_top=True)
    Interval(low=0.83..., high=1.0)
    """
    tail = ((1 - level) / 2) ** (1 / count)
    return Interval(tail, 1.0) if is_top else Interval(0.0, 1 - tail)
