"""A value by progress: points, and how to go from each to the next."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

_STEEPNESS = 5.0
"""Exponential curves fall to e^-5 of their distance; the logistic function goes from -5 to 5."""

WAYS: dict[str, Callable[[float], float]] = {
    "steps": lambda share: 0.0,
    "linear": lambda share: share,
    "smooth": lambda share: 0.5 * (1 - math.cos(math.pi * share)),
    "exponential": lambda share: math.expm1(-_STEEPNESS * share) / math.expm1(-_STEEPNESS),
    "inverse_sigmoid": lambda share: (
        0.5 * (1 + math.tanh(_STEEPNESS * (share - 0.5)) / math.tanh(_STEEPNESS / 2))
    ),
}
"""How to go from one point to the next: which share of the way is made when a share of the time has passed.

`steps` stays until the next point, `linear` is a straight line, `smooth` half a cosine, level at both points;
`exponential` begins steeply; `inverse_sigmoid` is a logistic function, stretched to begin at 0 and end at 1.
"""


class Point(NamedTuple):
    """A value at a progress.

    Args:
        at: Progress, from 0 to 1.
        value: The value there.
        way: How the curve goes on to the next point, one of `WAYS`.
    """

    at: float
    value: float
    way: str = "linear"


class Curve:
    """A value as a function of progress, without state, level before the first point and after the last.

    Args:
        points: At least one, in order of progress. Of several at one progress the last one counts.
        tolerance: A point counts as reached so much before it.

    >>> curve = Curve([Point(0, 0.0), Point(0.2, 1.0, "smooth"), Point(1, 0.1)])
    >>> [round(curve(progress), 3) for progress in (0, 0.1, 0.2, 0.6, 1, 2)]
    [0.0, 0.5, 1.0, 0.55, 0.1, 0.1]
    """

    def __init__(self, points: Sequence[Point], tolerance: float = 0.0) -> None:
        self.points = tuple(points)
        self._tolerance = tolerance

    def __call__(self, progress: float) -> float:
        """The value at a progress."""
        passed = [place for place, point in enumerate(self.points) if point.at <= progress + self._tolerance]
        place = passed[-1] if passed else 0
        point = self.points[place]
        if place + 1 == len(self.points):
            return point.value
        later = self.points[place + 1]
        time = max(0.0, progress - point.at) / (later.at - point.at)
        share = WAYS[point.way](time)
        return point.value * (1 - share) + later.value * share
