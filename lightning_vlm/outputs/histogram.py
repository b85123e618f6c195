"""A histogram of whole numbers that are counted by what became of each: lengths, sides of pictures."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Bin(NamedTuple):
    """How many have at least `start` and less than `stop`, by what became of them."""

    start: int
    stop: int
    counts: dict[str, int]

    @property
    def total(self) -> int:
        """All that it counts.

        >>> Bin(0, 10, {"kept": 3, "skipped": 1}).total
        4
        """
        return sum(self.counts.values())

    @property
    def range(self) -> str:
        """From where to where it goes.

        >>> Bin(1000, 1100, {}).range, Bin(7, 8, {}).range
        ('1,000–1,099', '7')
        """
        last = self.stop - 1
        if self.start == last:
            return f"{last:,}"
        return f"{self.start:,}–{last:,}"

    def describe(self, names: Mapping[str, str]) -> str:
        """How many share each fate, in the order of `names`.

        >>> Bin(0, 10, {"kept": 3, "skipped": 1}).describe({"kept": "whole", "skipped": "left out"})
        '3 whole, 1 left out'
        """
        parts = [f"{self.counts[fate]:,} {words}" for fate, words in names.items() if self.counts.get(fate)]
        return ", ".join(parts) or "none"


def bins_of(counts: Mapping[tuple[int, str], int], most: int = 16) -> list[Bin]:
    """Bins of a round width, with those that count nothing between others.

    Args:
        counts: How many have a value and a fate.
        most: How many bins there are at most.

    >>> [(bin.start, bin.stop, bin.counts) for bin in bins_of({(3, "kept"): 1, (5, "cut"): 2}, most=2)]
    [(2, 4, {'kept': 1, 'cut': 0}), (4, 6, {'kept': 0, 'cut': 2})]
    """
    values = [value for value, _ in counts]
    if not values:
        return []
    for width in _round_numbers():
        first, last = min(values) // width, max(values) // width
        if last - first < most:
            break
    fates = list(dict.fromkeys(fate for _, fate in counts))
    sums: Counter[tuple[int, str]] = Counter()
    for (value, fate), count in counts.items():
        sums[value // width, fate] += count
    bins = []
    for number in range(first, last + 1):
        bins.append(Bin(number * width, (number + 1) * width, {fate: sums[number, fate] for fate in fates}))
    return bins


def _round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, 100 ..."""
    for power in itertools.count():
        for factor in (1, 2, 5):
            yield factor * 10**power
