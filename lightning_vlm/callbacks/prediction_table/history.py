"""The answers of a run's validations: bounded, and plain values, so that a checkpoint can keep them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_vlm.callbacks.prediction_table.marks import Mark, marks_of
from lightning_vlm.callbacks.prediction_table.samples import Place
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.text import exact_match

LONGEST = 1000
"""The most characters of a text that are kept."""


class Answer(NamedTuple):
    """What a model answered to a sample at one validation.

    Args:
        text: The words.
        right: Whether they are exactly the right ones; None if that is unknown.
        scores: Its scores, by name.
        found: What it has found in the pictures.
        faults: What of its boxes could not be read.
        prompt: What was asked, in words.
        target: The right answer.
    """

    text: str
    right: bool | None
    scores: dict[str, float]
    found: list[Mark]
    faults: list[str]
    prompt: str
    target: str | None


class Validation(NamedTuple):
    """The answers of one validation, after so many steps."""

    step: int
    answers: dict[Place, Answer]


def answer_of(prediction: Prediction, choice: ScoreChoice | None = None) -> Answer:
    """What is kept of an answer, with the scores that are chosen for its task."""
    scores = (choice or ScoreChoice()).values(prediction)
    scores.pop("exact_match", None)
    reference = prediction.reference
    text = prediction.text
    if prediction.reasoning:
        text = f"({prediction.reasoning.strip()})\n{text}"
    found = prediction.found
    return Answer(
        text=shorten(text),
        right=None if reference is None else bool(exact_match(prediction.text, reference)),
        scores={name: round(value, 4) for name, value in scores.items() if math.isfinite(value)},
        found=[] if found is None else marks_of(found.items),
        faults=[] if found is None else [shorten(fault, 200) for fault in found.faults[:5]],
        prompt=shorten(prediction.prompt),
        target=None if reference is None else shorten(reference),
    )


def shorten(text: str, most: int = LONGEST) -> str:
    """A text of bounded length.

    >>> shorten("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


class History:
    """The answers of a run's validations, thinned out: the first and the last one are always there.

    Args:
        keep: How many validations are kept.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.validations: list[Validation] = []

    def add(self, step: int, answers: Mapping[Place, Answer]) -> None:
        """Add a validation. One of the same step, which a resumed run repeats, is replaced.

        >>> history = History(keep=3)
        >>> for step in range(0, 500, 100):
        ...     history.add(step, {})
        >>> [validation.step for validation in history.validations]
        [0, 200, 400]
        """
        self.validations = [one for one in self.validations if one.step < step]
        self.validations.append(Validation(step, dict(answers)))
        while len(self.validations) > self.keep:
            del self.validations[self._most_crowded()]

    def _most_crowded(self) -> int:
        """Which of the inner ones has its neighbours nearest to each other."""
        steps = [validation.step for validation in self.validations]
        inner = range(1, len(steps) - 1)
        return min(inner, key=lambda at: (steps[at + 1] - steps[at - 1], at))

    def state(self) -> list[Any]:
        """Lists, numbers and texts that `load` takes."""
        return [
            [step, [[*place, *_plain(answer)] for place, answer in answers.items()]]
            for step, answers in self.validations
        ]

    def load(self, state: list[Any]) -> None:
        """Take over what `state` returned."""
        self.validations = []
        for step, rows in state:
            answers = {Place(loader, index): _answer(values) for loader, index, *values in rows}
            self.validations.append(Validation(step, answers))


def _plain(answer: Answer) -> list[Any]:
    fields: dict[str, Any] = answer._asdict()
    marks = [[mark.kind, list(mark.numbers), mark.label, mark.picture] for mark in answer.found]
    return list({**fields, "found": marks}.values())


def _answer(values: list[Any]) -> Answer:
    answer = Answer(*values)
    marks = [Mark(kind, tuple(numbers), label, picture) for kind, numbers, label, picture in answer.found]
    return answer._replace(found=marks)
