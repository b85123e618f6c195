"""What a score means for the best checkpoint and for the run: one decision, so the two can't disagree."""

import math
from typing import Literal, NamedTuple

__all__ = ["Decision", "Rule", "Standing", "decide"]


class Rule(NamedTuple):
    """What is better, and how long to wait for it."""

    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    patience: int | None = None


class Standing(NamedTuple):
    """The best score so far, and how many scores in a row haven't bettered it."""

    best: float | None = None
    waited: int = 0


class Decision(NamedTuple):
    """What follows from a score. `reason` is empty unless the run stops."""

    standing: Standing
    is_best: bool
    should_stop: bool
    reason: str = ""


def decide(rule: Rule, standing: Standing, score: float) -> Decision:
    """What a new score means: the one place where that is decided.

    Args:
        score: NaN and infinities are never an improvement, and a finite score after them can be one.

    >>> rule = Rule(patience=2)
    >>> decide(rule, Standing(), float("nan"))
    Decision(standing=Standing(best=None, waited=1), is_best=False, should_stop=False, reason='')
    >>> decide(rule, Standing(waited=1), 0.7)
    Decision(standing=Standing(best=0.7, waited=0), is_best=True, should_stop=False, reason='')
    >>> decide(rule, Standing(0.7, waited=1), 0.7).reason
    'no score in a row of 2 was better than 0.7; the last is 0.7'
    """
    if _is_better(rule, standing.best, score):
        return Decision(Standing(score), is_best=True, should_stop=False)
    waited = Standing(standing.best, standing.waited + 1)
    if rule.patience is None or waited.waited < max(rule.patience, 1):
        return Decision(waited, is_best=False, should_stop=False)
    return Decision(waited, is_best=False, should_stop=True, reason=_reason(rule, waited, score))


def _is_better(rule: Rule, best: float | None, score: float) -> bool:
    if not math.isfinite(score):
        return False
    if best is None:
        return True
    sign = 1 if rule.mode == "min" else -1
    return sign * score < sign * best - rule.min_delta


def _reason(rule: Rule, standing: Standing, score: float) -> str:
    better = "finite"
    if standing.best is not None:
        better = f"better than {standing.best:g}"
        if rule.min_delta:
            better += f" by more than {rule.min_delta:g}"
    return f"no score in a row of {standing.waited} was {better}; the last is {score:g}"
