"""The largest batch and the longest sample that fit, from a few counted steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_vlm.planning.samples import MakeBatch
from lightning_vlm.planning.step import CountedStep, Need

MOST = 4096
"""More samples than that aren't put into a batch."""
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


@dataclass
class Counts:
    """What steps of a method need, by how many samples a batch has.

    Args:
        step: Counts them.
        make: Makes a batch.
    """

    step: CountedStep
    make: MakeBatch
    known: dict[tuple[bool, int], Need] = field(default_factory=dict)

    def need(self, recompute: bool, samples: int) -> Need:
        """What a step on so many samples needs; counted once."""
        key = recompute, samples
        if key not in self.known:
            self.step.recompute(recompute)
            self.known[key] = self.step(self.make(samples))
        return self.known[key]

    def line(self, recompute: bool) -> Line:
        """The peak by the samples of a batch."""
        one, two = (self.need(recompute, samples).peak for samples in (1, 2))
        return Line.through((1, one), (2, two))

    def peak(self, recompute: bool, samples: int) -> float:
        """The peak of a batch, counted if it is known, else by the line."""
        known = self.known.get((recompute, samples))
        return known.peak if known else self.line(recompute).at(samples)

    def largest(self, recompute: bool, room: float, most: int = MOST) -> int:
        """How many samples fit, by the line."""
        return min(self.line(recompute).most(room), most)

    def largest_counted(self, recompute: bool, room: float, most: int = MOST) -> int:
        """How many samples fit, counted itself at the end."""
        samples = self.largest(recompute, room, most)
        while samples > 0 and self.need(recompute, samples).peak > room:
            samples = min(samples - 1, int(samples * 0.95))
        return samples


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
