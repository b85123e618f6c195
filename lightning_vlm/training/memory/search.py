"""The largest batch that fits, found from a few measured ones.

All of this is arithmetic: it knows nothing of models and devices. A batch is taken to need a fixed part, and
a part for each token and each patch; the answer is then measured itself, and made smaller if it must be.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lightning_vlm.data.batch.lengths import Lengths, SampleLength

ROUND = 256
"""What is found is a multiple of this, or as small as the longest sample."""
SMALL_ROUND = 16
"""Below `ROUND` it is a multiple of this: data of short samples would else have a batch for each of them."""
CORRECTIONS = 4
"""How often an answer that turns out too large is made smaller."""
DISTINCT = 64
"""So many different samples are in a measured batch at most; a larger one has them several times."""
UNLIMITED = 2**62


class Point(NamedTuple):
    """A batch that was measured.

    Args:
        size: Its tokens, padding included, and its patches.
        bytes: What its step took.
    """

    size: SampleLength
    bytes: int


Measure = Callable[[Sequence[int]], Point]
"""Makes a step on a batch of these samples; raises `torch.OutOfMemoryError` if there isn't enough memory."""


class Cost(NamedTuple):
    """What a batch takes, in bytes: a fixed part, and a part for each token and each patch."""

    fixed: float
    per_token: float
    per_patch: float

    def of(self, size: SampleLength) -> float:
        """For a batch of this size."""
        return self.fixed + self.per_token * size.tokens + self.per_patch * size.patches


def fit_cost(points: Sequence[Point]) -> Cost:
    """The cost that fits measured batches best, and is less for none of them.

    What a patch takes is known only where batches differ in how many patches a token has.

    >>> fit_cost([Point(SampleLength(100, 0), 1200), Point(SampleLength(300, 0), 1600)])
    Cost(fixed=1000.0, per_token=2.0, per_patch=0.0)
    """
    sizes = np.array([(1, point.size.tokens, point.size.patches) for point in points], float)
    measured = np.array([point.bytes for point in points], float)
    scale = sizes.max(0).clip(1)
    for columns in ([0, 1, 2], [0, 1], [0, 2], [1]):
        chosen = (sizes / scale)[:, columns]
        found, _, rank, _ = np.linalg.lstsq(chosen, measured, rcond=1e-6)
        if rank == len(columns) and (found[1:] >= 0).all():
            break
    each = np.zeros(3)
    each[columns] = found / scale[columns]
    each[0] += max((measured - sizes @ each).max(), 0)
    return Cost(*(round(value, 3) for value in each.tolist()))


class Samples:
    """The samples of a training set that weigh most, and batches made of them.

    Args:
        lengths: Of some samples, or of all; one of them at least can be used.
        numbers: Array of shape [samples], int: which samples of the data they are.
        is_padded: Whether the samples of a batch are padded to the longest of them.
    """

    def __init__(self, lengths: Lengths, numbers: np.ndarray, is_padded: bool) -> None:
        usable = lengths.tokens > 0
        tokens = lengths.tokens[usable].astype(np.int64)
        patches = lengths.patches[usable].astype(np.int64)
        self._numbers = numbers[usable]
        self._is_padded = is_padded
        self._lengths: dict[int, SampleLength] = {}
        orders = (
            np.lexsort((-patches, -tokens)),
            np.lexsort((tokens, -patches)),
            np.lexsort((-tokens, patches)),
        )
        for order in orders:
            for place in order[:DISTINCT].tolist():
                length = SampleLength(int(tokens[place]), int(patches[place]))
                self._lengths[int(self._numbers[place])] = length
        self.by_tokens, self.by_patches, self.by_text = (
            self._numbers[order[:DISTINCT]].tolist() for order in orders
        )
        """Those with most tokens, with most patches, and with fewest patches, the first one first."""
        self.longest = SampleLength(int(tokens.max()), int(patches.max()))
        """The most tokens and the most patches of any sample."""
        self.tokens = int(tokens.sum())
        """Of all of them."""
        self.patches_per_token = int(patches.sum()) / self.tokens
        """Over all of them."""
        self.densest = float((patches / tokens).max())
        """The most patches for each token of any sample."""

    def size(self, batch: Sequence[int]) -> SampleLength:
        """The size of a batch, with its padding."""
        tokens = [self._lengths[index].tokens for index in batch]
        patches = sum(self._lengths[index].patches for index in batch)
        return SampleLength(len(batch) * max(tokens) if self._is_padded else sum(tokens), patches)

    def fill(self, most: SampleLength) -> list[int]:
        """A batch as large as may be: first samples with many patches, then those with few.

        Args:
            most: The most tokens and patches that it may have; it has one sample at least.
        """
        return self.grow(self.by_text, most, self.grow(self.by_patches, most))

    def grow(self, order: Sequence[int], most: SampleLength, batch: Sequence[int] = ()) -> list[int]:
        """Add samples to a batch in turn, over and over again, as long as any of them fits.

        Args:
            order: Which to add, the first one first.
            most: The most tokens and patches that it may have.
            batch: To begin with; of an empty one the first sample is there in any case.
        """
        grown = list(batch) or [order[0]]
        size = self.size(grown)
        longest = max(self._lengths[index].tokens for index in grown)
        before = 0
        while len(grown) > before:
            before = len(grown)
            for index in order:
                length = self._lengths[index]
                most_tokens = max(longest, length.tokens)
                tokens = (len(grown) + 1) * most_tokens if self._is_padded else size.tokens + length.tokens
                larger = SampleLength(tokens, size.patches + length.patches)
                if larger.tokens <= most.tokens and larger.patches <= most.patches:
                    grown.append(index)
                    size, longest = larger, most_tokens
        return grown


def largest(
    cost: Cost, room: int, samples: Samples, cap: int, patches: int | None = None
) -> SampleLength | None:
    """The most tokens and patches of batches that fit, both at once.

    Where patches aren't given, they are as many for each token as in the data, so that batches run out of
    both together; what a cap of tokens leaves is for patches.
    There is no limit of patches where tokens are one.

    Args:
        cost: Of a batch.
        room: The bytes that it may take.
        samples: The data; the longest of them has to fit.
        cap: The most tokens.
        patches: The most patches, if given.

    Returns:
        None if the longest samples don't fit.
    """
    longest = samples.longest
    left = room - cost.fixed
    if patches is not None:
        tokens = _ratio(left - cost.per_patch * patches, cost.per_token)
    else:
        patches = 0
        tokens = _ratio(left, cost.per_token + cost.per_patch * samples.patches_per_token)
        if tokens * samples.patches_per_token < longest.patches:
            tokens = _ratio(left - cost.per_patch * longest.patches, cost.per_token)
    tokens = rounded(min(tokens, cap), longest.tokens)
    if not patches:
        patches = rounded(_ratio(left - cost.per_token * tokens, cost.per_patch), longest.patches)
        if patches >= tokens * samples.densest:  # more than any batch has
            patches = UNLIMITED
    return SampleLength(tokens, patches) if cost.of(longest) <= room else None


def _ratio(amount: float, each: float) -> float:
    return max(amount, 0) / each if each > 0 else UNLIMITED


def rounded(value: float, least: int) -> int:
    """Rounded down to a multiple of `ROUND`, or of `SMALL_ROUND` below, but no less than something.

    >>> rounded(1000, least=100), rounded(1000, least=900), rounded(172, least=81)
    (768, 900, 160)
    """
    unit = ROUND if value >= ROUND else SMALL_ROUND
    return max(int(value) // unit * unit, least)


class Found(NamedTuple):
    """The largest batch that fits.

    Args:
        size: The most tokens and patches of a batch.
        bytes: What such a batch took as it was measured.
        cost: What the measured batches say.
        steps: How many were measured.
        is_capped: Whether something other than memory sets the tokens.
    """

    size: SampleLength
    bytes: int
    cost: Cost
    steps: int
    is_capped: bool


class Search:
    """Finds the most tokens, and patches, that batches may have.

    Args:
        measure: Measures a batch.
        samples: What batches are made of.
        room: The bytes that a step may take.
        cap: The most tokens to be found, however much memory there is.
        patches: The most patches of a batch where that is given; else they are found as well.
    """

    def __init__(
        self, measure: Measure, samples: Samples, room: int, cap: int, patches: int | None = None
    ) -> None:
        self._measure = measure
        self._samples = samples
        self._room = room
        self._cap = max(cap, samples.longest.tokens)
        self._patches = patches
        self._points: list[Point] = []
        self._steps = 0

    def run(self) -> Found | None:
        """Measure, decide, and measure what was decided. None if the longest sample alone doesn't fit."""
        orders = [self._samples.by_tokens]
        if self._samples.longest.patches:
            orders.append(self._samples.by_patches)
        for order in orders:
            point = self._try(order[:1])
            if point is None or point.bytes > self._room:
                return None
            self._grow(order, point)
        for _ in range(CORRECTIONS):
            cost = fit_cost(self._points)
            size = largest(cost, self._room, self._samples, self._cap, self._patches)
            if size is None:
                break
            batch = self._samples.fill(size)
            point = self._try(batch)
            if point is None:  # it would have been over by a seventh, let us say
                self._points.append(Point(self._samples.size(batch), self._room * 8 // 7))
            elif point.bytes <= self._room:
                return Found(size, point.bytes, cost, self._steps, size.tokens >= self._cap)
        return self._alone()

    def _grow(self, order: Sequence[int], point: Point) -> None:
        """Measure larger and larger batches, until one takes half of what there is; at least one."""
        is_first = True
        while is_first or point.bytes <= self._room // 2:
            is_first = False
            factor = 4 if 4 * point.bytes <= self._room else 2
            patches = UNLIMITED if self._patches is None else self._patches
            most = SampleLength(min(factor * point.size.tokens, self._cap), patches)
            batch = self._samples.grow(order, most)
            if self._samples.size(batch).tokens <= point.size.tokens:
                return
            larger = self._try(batch)
            if larger is None:
                return
            point = larger

    def _alone(self) -> Found | None:
        """No more than the longest sample, where estimates fail."""
        size = self._samples.longest
        point = self._try(self._samples.fill(size))
        if point is None or point.bytes > self._room:
            return None
        return Found(size, point.bytes, fit_cost(self._points), self._steps, is_capped=False)

    def _try(self, batch: Sequence[int]) -> Point | None:
        self._steps += 1
        try:
            point = self._measure(batch)
        except torch.OutOfMemoryError:
            return None
        self._points.append(point)
        return point
