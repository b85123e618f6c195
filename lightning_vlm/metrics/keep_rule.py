"""Which answers are kept: scores compared with numbers, such as `anls >= 0.9 and cer < 0.1`."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.known_scores import SCORES, Score, find_score, is_score
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.nearest import did_you_mean

MAIN = "score"
"""The name of a task's first score that an answer has; of boxes `miou`, where no scores were chosen."""
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"\s*([A-Za-z_][\w@.]*)\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*")


class Clause(NamedTuple):
    """A score compared with a number."""

    name: str
    compare: Callable[[float, float], bool]
    number: float


class KeepRule:
    """Reads comparisons joined by `and`, and nothing else; no code runs.

    Args:
        text: Such as `score >= 0.9`.

    Raises:
        UserError: It is no such comparison, or names no score.

    >>> rule = KeepRule("exact_match == 1 and token_f1>.5")
    >>> [rule.keeps(Prediction("a", "vqa", text, "cat"), ScoreChoice()) for text in ("cat", "dog")]
    [True, False]
    >>> KeepRule("exact_mach >= 1")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: keep: there is no score exact_mach; did you mean exact_match?
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._clauses = [_clause(part) for part in re.split(r"\band\b", text)]

    def keeps(self, answer: Prediction, choice: ScoreChoice) -> bool | None:
        """Whether an answer is kept; None where it has no such score.

        Args:
            answer: With what is right.
            choice: The scores of each task.
        """
        kept = True
        for clause in self._clauses:
            value = _main(answer, choice) if clause.name == MAIN else find_score(clause.name).of(answer)
            if value is None:
                return None
            kept &= clause.compare(value, clause.number)
        return kept


def _main(answer: Prediction, choice: ScoreChoice) -> float | None:
    """The first score of the task that this answer has."""
    scores: tuple[Score, ...] = choice.of(answer.task)
    if not choice.is_given:
        scores = (SCORES["miou"], *scores)
    values = (score.of(answer) for score in scores)
    return next((value for value in values if value is not None), None)


def _clause(text: str) -> Clause:
    found = _CLAUSE.fullmatch(text)
    if found is None:
        shown = text.strip() or "nothing"
        raise UserError(
            f"keep: found {shown!r}; expected a score, one of {' '.join(_OPERATORS)}, and a number, such as "
            "'score >= 0.9'; several joined by 'and'"
        )
    name, compare, number = found.groups()
    if name != MAIN and not is_score(name):
        raise UserError(f"keep: there is no score {name}{did_you_mean(name, [MAIN, *SCORES])}")
    return Clause(name, _OPERATORS[compare], float(number))
