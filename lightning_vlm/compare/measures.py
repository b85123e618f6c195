"""What is measured on answers, as sums that add up over samples: scores, and the loss of what is right."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_vlm.compare.answered import Answered
from lightning_vlm.compare.bootstrap import Numbers
from lightning_vlm.metrics.known_scores import Score, place_of
from lightning_vlm.metrics.score_choice import ScoreChoice

LOWER_IS_BETTER = (
    *("false_yes", "cer", "wer", "parse_failures", "missed", "hallucination", "duplicates"),
    *("loss", "perplexity"),
)
"""Of these, less is better."""
NEITHER = ("yes_share",)
"""Of these, neither more nor less is better."""
OF_ALL_BOXES = ("map", "mask_ciou", "duplicates")
"""These aren't means of those of each answer, and can't be made of a file of answers."""
_MEAN = {"sum", "count"}

Sums = Mapping[str, float]


class Measure(NamedTuple):
    """What is measured.

    Args:
        name: Of the score.
        sums: What it needs of one answer; None where it doesn't apply.
        value: What it is of sums; None where it has none.
    """

    name: str
    sums: Callable[[Answered], Sums | None]
    value: Callable[[Sums], float | None]

    def of(self, answer: Answered) -> float | None:
        """What it is of one answer alone."""
        sums = self.sums(answer)
        return None if sums is None else self.value(sums)

    @property
    def direction(self) -> int:
        """1 if more is better, -1 if less is, 0 if neither."""
        return 0 if self.name in NEITHER else -1 if self.name in LOWER_IS_BETTER else 1


def _of_score(score: Score) -> Measure:
    def sums(answer: Answered) -> Sums | None:
        found = score.sums(answer.prediction)
        written = answer.scores.get(score.name)
        if written is None or score.name in OF_ALL_BOXES:
            return found
        # Boxes in a file of answers are rounded, and what is right isn't known, but each answer's score is.
        is_mean = found is None or (set(found) == _MEAN and found["count"] == 1)
        return {"sum": written, "count": 1.0} if is_mean else found

    return Measure(score.name, sums, score.value)


def _loss(answer: Answered) -> Sums | None:
    if answer.loss is None or not answer.loss[1]:
        return None
    return {"sum": answer.loss[0], "count": answer.loss[1]}


def _nll(answer: Answered) -> Sums | None:
    if answer.loss is None or not answer.loss[3]:
        return None
    return {"nll": answer.loss[2], "tokens": answer.loss[3]}


def _ratio(sums: Sums) -> float | None:
    return sums["sum"] / sums["count"] if sums["count"] else None


def _perplexity(sums: Sums) -> float | None:
    return float(np.exp(sums["nll"] / sums["tokens"])) if sums["tokens"] else None


OF_LOSSES = (Measure("loss", _loss, _ratio), Measure("perplexity", _nll, _perplexity))
"""What is measured of the right answers."""


def measures_of(choice: ScoreChoice, tasks: Iterable[str]) -> list[Measure]:
    """All that is measured on answers of some tasks, in the order of tables."""
    scores = {score.name: score for task in tasks for score in choice.of(task)}
    return [_of_score(scores[name]) for name in sorted(scores, key=place_of)] + list(OF_LOSSES)


def sums_of(measure: Measure, answers: Sequence[Answered], choice: ScoreChoice) -> list[Sums | None]:
    """What a measure needs of each answer; None where it doesn't apply, or isn't chosen for the task."""
    chosen = {task: {score.name for score in choice.of(task)} for task in _tasks(answers)}
    is_loss = measure in OF_LOSSES
    return [
        measure.sums(answer) if is_loss or measure.name in chosen[answer.prediction.task] else None
        for answer in answers
    ]


def _tasks(answers: Sequence[Answered]) -> set[str]:
    return {answer.prediction.task for answer in answers}


class Columns(NamedTuple):
    """Sums as a table.

    Args:
        names: Of the columns.
        rows: One row for each answer; shape [answers, columns].
        always: Whether each answer that the measure applies to has a column.
    """

    names: tuple[str, ...]
    rows: Numbers
    always: tuple[bool, ...]

    @classmethod
    def of(cls, sums: Sequence[Sums | None]) -> "Columns":
        """From the sums of each answer.

        >>> table = Columns.of([{"sum": 1.0, "count": 1.0}, None])
        >>> table.names, table.rows.tolist()
        (('count', 'sum'), [[1.0, 1.0], [0.0, 0.0]])
        """
        there = [row for row in sums if row is not None]
        names = tuple(sorted({name for row in there for name in row}))
        rows = np.array([[(row or {}).get(name, 0.0) for name in names] for row in sums], np.float64)
        always = tuple(all(name in row for row in there) for name in names)
        return cls(names, rows.reshape(len(sums), len(names)), always)

    def as_sums(self, numbers: Numbers) -> Sums:
        """One row by names. Columns that some answers don't have, such as a label's, are left out at zero."""
        return {
            name: float(number)
            for name, number, always in zip(self.names, numbers, self.always, strict=True)
            if always or number
        }

    def is_fast(self, measure: Measure) -> bool:
        """Whether values of many rows can be made at once."""
        return set(self.names) == _MEAN or measure is OF_LOSSES[1]

    def values(self, measure: Measure, numbers: Numbers) -> Numbers:
        """What a measure is of each row of sums; NaN where it has no value.

        Args:
            measure: Of these columns.
            numbers: Shape [many, columns].
        """
        if not self.is_fast(measure):
            return np.array([_number(measure, self.as_sums(row)) for row in numbers])
        above, below = ("nll", "tokens") if measure is OF_LOSSES[1] else ("sum", "count")
        parts, wholes = numbers[:, self.names.index(above)], numbers[:, self.names.index(below)]
        with np.errstate(all="ignore"):
            ratios = np.where(wholes == 0, np.nan, parts / wholes)
            return np.exp(ratios) if measure is OF_LOSSES[1] else ratios


def _number(measure: Measure, sums: Sums) -> float:
    try:
        found = measure.value(sums)
    except (KeyError, ZeroDivisionError):  # a draw without any answer that the score applies to
        return math.nan
    return math.nan if found is None else found
