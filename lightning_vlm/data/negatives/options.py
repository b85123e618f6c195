"""How many negatives there are, of which kind, and how both change in the course of training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import refuse_unknown_keys

DEFAULT_RATIO = {"detection": 3.0, "grounding": 1.0, "referring": 1.0}
"""Negatives for each sample of a task, as is usual for detection and for referring expressions."""


@dataclass(frozen=True)
class Negatives:
    """Adds samples that ask for what isn't in the picture, and are answered so.

    A sample whose answer has labelled boxes is asked again with another name in place of its label; one that
    asks what is in a box is asked about a part of the picture where nothing is (`background`). What may be
    there is never asked for: see `names.may_be_there`.

    The name is `hard`: the one most like what the picture shows (a red circle where there are a red square
    and a blue circle), or else the one that is most often seen together with it; or any other name that
    isn't there (`random`). POPE (https://arxiv.org/abs/2305.10355) calls them adversarial and random.

    Args:
        ratio: Task -> negatives for each of its samples. None is `DEFAULT_RATIO`.
        hard: The share of hard ones; the others are random.
        schedule: What changes with epochs, such as `[{epoch: 0, hard: 0.0}, {epoch: 2.5, hard: 1.0}]`: points
            with `hard`, and with `ratio`, a factor on all ratios; straight lines between them. The length of
            an epoch is that of the largest ratio; where it is smaller, samples come again as they are.
        question: What is asked where the sample's own question doesn't contain its label.
        nothing: What is answered about a part of the picture where nothing is.
        seed: Which they are.

    Raises:
        UserError: A number out of range, or a point without `epoch`.

    >>> Negatives(schedule=[{"epoch": 0, "hard": 0.0}, {"epoch": 2, "hard": 1.0}]).hard_at(0.5)
    0.25
    """

    ratio: Mapping[str, float] | None = None
    hard: float = 0.5
    schedule: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    question: str = "Find the {}."
    nothing: str = "Nothing."
    seed: int = 0

    def __post_init__(self) -> None:
        for task, ratio in self.ratios.items():
            if not 0 <= ratio <= 100:
                raise UserError(f"negatives.ratio.{task}: found {ratio}; expected a number from 0 to 100")
        if not 0 <= self.hard <= 1:
            raise UserError(f"negatives.hard: found {self.hard}; expected a share from 0 to 1")
        if "{}" not in self.question:
            raise UserError(f"negatives.question: found {self.question!r}; expected {{}} where the name goes")
        for place, point in enumerate(self.schedule):
            self._check(point, f"negatives.schedule[{place}]")

    def _check(self, point: Mapping[str, float], key: str) -> None:
        refuse_unknown_keys(point, _OF_A_POINT, key)
        if "epoch" not in point:
            raise UserError(f"{key}: found no epoch; expected the epoch from which it holds")
        for name, most in _OF_A_POINT.items():
            if not 0 <= point.get(name, 0) <= most:
                raise UserError(f"{key}.{name}: found {point[name]}; expected a number from 0 to {most:g}")

    @classmethod
    def read(cls, given: "Negatives | Mapping[str, Any] | bool | None") -> "Negatives | None":
        """From what a config or Python has: an object, its keys, or whether there are any.

        Raises:
            UserError: A key that there isn't.

        >>> Negatives.read({"hard": 1.0}).ratios["detection"]
        3.0
        """
        if isinstance(given, Mapping):
            refuse_unknown_keys(given, cls.__dataclass_fields__, "negatives")
            return cls(**given)
        if isinstance(given, bool):
            return cls() if given else None
        return given

    @property
    def ratios(self) -> Mapping[str, float]:
        """Negatives for each sample of a task."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    @property
    def most(self) -> float:
        """The largest factor on the ratios."""
        factors = [point["ratio"] for point in self.schedule if "ratio" in point]
        return max(factors, default=1.0)

    def hard_at(self, epoch: float) -> float:
        """The share of hard ones at a time, in epochs from 0."""
        return self._at("hard", epoch, self.hard)

    def factor_at(self, epoch: float) -> float:
        """The factor on the ratios at a time, in epochs from 0."""
        return self._at("ratio", epoch, 1.0)

    def _at(self, name: str, epoch: float, default: float) -> float:
        points = sorted((point["epoch"], point[name]) for point in self.schedule if name in point)
        if not points:
            return default
        before = [point for point in points if point[0] <= epoch]
        behind = [point for point in points if point[0] > epoch]
        if not before or not behind:
            return (before[-1:] or behind)[0][1]
        (start, first), (stop, last) = before[-1], behind[0]
        return first + (last - first) * (epoch - start) / (stop - start)


_OF_A_POINT = {"epoch": math.inf, "hard": 1.0, "ratio": 100.0}
"""The keys of a point, and how large their values may be."""
