"""The largest batch and the longest sample that fit, from a few counted steps."""

from collections.abc import Callable
from typing import NamedTuple

from lightning_vlm.planning.samples import MakeBatch
from lightning_vlm.planning.step import CountedStep, Need

MOST = 4096
"""More samples than that aren't put into a batch."""
SEVERAL = 16
"""The most samples of a batch that lines go through."""
CORRECTIONS = 4


class Line(NamedTuple):
    """Bytes that grow with a number: those at 0, and those for each.

    >>> Line.through((1, 300), (2, 500)).most(1000)
    4
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> "Line":
        """The line through two points."""
        each = max((second[1] - first[1]) / (second[0] - first[0]), 0)
        return cls(first[1] - each * first[0], each)

    def at(self, number: float) -> float:
        """The bytes at a number."""
        return self.fixed + self.each * number

    def most(self, room: float) -> int:
        """The largest number that fits."""
        if self.at(1) > room:
            return 0
        return MOST if self.each <= 0 else int((room - self.fixed) // self.each)


class Counts:
    """What steps of a method need, by how many samples a batch has.

    Args:
        step: Counts them.
        make: Makes a batch.
        several: The line of peaks goes through those of one sample and of so many.
        has_buckets: Whether DDP keeps a copy of all gradients.
    """

    def __init__(
        self, step: CountedStep, make: MakeBatch, several: int = 2, has_buckets: bool = False
    ) -> None:
        self.step = step
        self._make = make
        self.several = several
        self._has_buckets = has_buckets
        self._known: dict[tuple[bool, int], Need] = {}

    def need(self, recompute: bool, samples: int) -> Need:
        """What a step on so many samples needs; counted once."""
        key = recompute, samples
        if key not in self._known:
            self.step.recompute(recompute)
            need = self.step(self._make(samples))
            self._known[key] = need._replace(buckets=need.gradients if self._has_buckets else 0)
        return self._known[key]

    def line(self, recompute: bool) -> Line:
        """The peak by the samples of a batch."""
        several = SEVERAL if recompute else self.several  # few of them weigh less than gradients
        one, more = (self.need(recompute, samples).peak for samples in (1, several))
        return Line.through((1, one), (several, more))

    def largest(self, recompute: bool, room: float, most: int = MOST) -> int:
        """How many samples fit: by the line, and then counted itself."""
        samples = min(self.line(recompute).most(room), most)
        while samples > 1 and self.need(recompute, samples).peak > room:
            samples = min(samples - 1, int(samples * 0.95))
        return samples


def several(need: Need, room: float) -> int:
    """How many samples a second count should have, so that they weigh more than gradients."""
    left = room - need.held
    return max(2, min(SEVERAL, int(left // max(1, need.forward))))


def longest(peak: Callable[[int], float], begin: int, room: float, most: int) -> int | None:
    """The most tokens of a single sample that fit.

    Args:
        peak: Of a step on a sample of so many tokens.
        begin: A length to begin at.
        room: The bytes that there are.
        most: No more than that; what the model has positions for.

    Returns:
        None if not even the first fits.

    >>> longest(lambda tokens: 100 + tokens**2, begin=10, room=10_100, most=1000)
    100
    """
    low, high = begin, begin
    at_low = peak(begin)
    if at_low > room:
        return None
    while high < most and at_low <= room:
        low, high = high, min(2 * high, most)
        at_high = peak(high)
        if at_high <= room:
            low, at_low = high, at_high
            if high == most:
                return most
            continue
        for _ in range(CORRECTIONS):
            middle = round(low + (high - low) * (room - at_low) / (at_high - at_low))
            middle = min(max(middle, low + 1), high - 1) if high - low > 1 else low
            if middle == low:
                break
            at_middle = peak(middle)
            if at_middle <= room:
                low, at_low = middle, at_middle
            else:
                high, at_high = middle, at_middle
        return low
    return low
