"""Scores with intervals, and differences of two models with theirs."""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lightning_vlm.compare.answered import Answered
from lightning_vlm.compare.bootstrap import (
    Interval,
    Sums,
    Values,
    add_up,
    exact_edge,
    interval,
    values_of,
)
from lightning_vlm.compare.measures import OF_LOSSES, Columns, Measure, sums_of
from lightning_vlm.metrics.score_choice import ScoreChoice

FEWEST = 20
"""From so many samples on, a difference is called one."""
FEWEST_CHANGED = 6
"""And from so many on that changed: of fewer, a fair coin gives all to one side more than 3% of the time."""


class Estimate(NamedTuple):
    """A score of a model.

    Args:
        value: What it is.
        interval: What it could have been on other samples like these; None where that is unknown.
        samples: How many answers it applies to.
    """

    value: float
    interval: Interval | None
    samples: int


class Difference(NamedTuple):
    """What a score of one model has more than that of another, on the same samples.

    Args:
        value: What it is.
        interval: As of `Estimate`.
        verdict: `better`, `worse`, `higher` or `lower` where the interval excludes zero; `unclear` where it
            doesn't; `same` where all samples have the same; `too few` samples.
    """

    value: float
    interval: Interval | None
    verdict: str


class ScoreRow(NamedTuple):
    """A score of all models.

    Args:
        name: Of the score.
        direction: As of `Measure`.
        estimates: Of each model; None where it has none.
        differences: Of each model from the one that it is compared with; None where there is none.
    """

    name: str
    direction: int
    estimates: list[Estimate | None]
    differences: list[Difference | None]


def score_row(
    measure: Measure,
    answers: Sequence[Sequence[Answered]],
    against: Sequence[int | None],
    groups: Sequence[Hashable],
    choice: ScoreChoice,
) -> ScoreRow | None:
    """A score of all models on the same samples.

    Args:
        measure: The score.
        answers: Of each model, in the same order.
        against: Which model each is compared with; None: with none.
        groups: As for `add_up`.
        choice: Which scores each task has.

    Returns:
        None where no model has this score.
    """
    sums = [sums_of(measure, of_model, choice) for of_model in answers]
    tables = [Columns.of(of_model) for of_model in sums]
    if not any(table.names for table in tables):
        return None
    added = add_up(np.concatenate([table.rows for table in tables], 1), groups)
    ends = np.cumsum([0, *(len(table.names) for table in tables)])
    parts = [added.columns(start, stop) for start, stop in pairwise(ends)]
    is_slow = not all(table.is_fast(measure) for table in tables if table.names)
    values = [
        values_of(part, partial(table.values, measure), is_slow) if table.names else None
        for table, part in zip(tables, parts, strict=True)
    ]
    estimates = [
        _estimate(measure, of_model, part, found)
        for of_model, part, found in zip(sums, parts, values, strict=True)
    ]
    differences: list[Difference | None] = []
    for number, other in enumerate(against):
        here, there = values[number], None if other is None else values[other]
        if other is None or here is None or there is None or np.isnan(here.point - there.point):
            differences.append(None)
            continue
        found = interval(here.minus(there))
        is_same = np.array_equal(tables[number].rows, tables[other].rows)
        is_enough = _are_enough(tables[number], tables[other], parts[number], parts[other])
        verdict = "same" if is_same else _verdict(found, measure.direction, is_enough)
        differences.append(Difference(here.point - there.point, found, verdict))
    return ScoreRow(measure.name, measure.direction, estimates, differences)


def _estimate(
    measure: Measure, sums: Sequence[Mapping[str, float] | None], part: Sums, values: Values | None
) -> Estimate | None:
    if values is None or np.isnan(values.point):
        return None
    there = [one for one in sums if one is not None]
    is_share = measure not in OF_LOSSES and all(one.get("count") == 1 and len(one) == 2 for one in there)
    found = interval(values)
    if is_share and values.point in (0, 1):
        found = exact_edge(_groups_with(part), bool(values.point))
    return Estimate(values.point, found, len(there))


def _groups_with(part: Sums) -> int:
    """How many groups of samples have any sums."""
    return int((part.rows != 0).any(1).sum())


def _are_enough(here: Columns, there: Columns, sums: Sums, others: Sums) -> bool:
    """Whether there are enough groups of samples, and enough that changed, to call a difference one."""
    changed = len(sums.rows)
    if here.names == there.names:
        changed = int((sums.rows != others.rows).any(1).sum())
    return min(_groups_with(sums), _groups_with(others)) >= FEWEST and changed >= FEWEST_CHANGED


def _verdict(found: Interval | None, direction: int, is_enough: bool) -> str:
    if found is None or not is_enough:
        return "too few"
    if not found.excludes_zero:
        return "unclear"
    more = found.low > 0
    if not direction:
        return "higher" if more else "lower"
    return "better" if more == (direction > 0) else "worse"
