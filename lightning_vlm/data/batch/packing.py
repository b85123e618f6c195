"""Which samples share a batch so that little of it is padding, and none of it too much.

All of this is arithmetic on lengths: it knows nothing of seeds, ranks or epochs.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lightning_vlm.data.batch.lengths import Lengths, SampleLength

WINDOW = 1024
"""Among how many samples of the shuffled order those that share a batch are looked for."""


class Budget(NamedTuple):
    """The most that a batch of one rank may hold.

    Args:
        tokens: Of the language model.
        patches: Of the vision tower; None is any number.
    """

    tokens: int
    patches: int | None = None

    def holds(self, length: SampleLength) -> bool:
        """Whether a sample fits.

        >>> Budget(100).holds(SampleLength(100, 9_999)), Budget(100, 64).holds(SampleLength(10, 65))
        (True, False)
        """
        return length.tokens <= self.tokens and (self.patches is None or length.patches <= self.patches)


class Units:
    """Batches of one rank, in order: which samples each has.

    Args:
        members: Array of shape [samples], int64: the samples of the first batch, of the second, and so on.
        ends: Array of shape [batches], int64: behind which of them each batch ends.

    >>> units = Units.of_lists([[3, 1], [2]])
    >>> len(units), units[1], units.samples_before(1)
    (2, [2], 2)
    """

    def __init__(self, members: np.ndarray, ends: np.ndarray) -> None:
        self.members = members
        self.ends = ends
        self.starts = np.append(0, ends)[:-1]
        """With which of them each batch begins."""
        self.sizes = ends - self.starts
        """How many of them each batch has."""

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> "Units":
        """From the samples of each batch."""
        members = [sample for samples in lists for sample in samples]
        ends = np.cumsum([len(samples) for samples in lists])
        return cls(np.array(members, np.int64), ends.astype(np.int64))

    @classmethod
    def of_size(cls, members: np.ndarray, batch_size: int) -> "Units":
        """Cut an order of samples into batches of so many; the last one has what is left."""
        ends = np.append(np.arange(batch_size, len(members), batch_size), len(members))
        return cls(members.astype(np.int64), ends.astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        return self.members[self.samples_before(number) : self.ends[number]].tolist()

    def samples_before(self, number: int) -> int:
        """How many samples the first batches have."""
        return int(self.ends[number - 1]) if number else 0

    def in_order(self, order: np.ndarray) -> "Units":
        """The same batches in another order.

        Args:
            order: Array of shape [batches], int64: which comes first, and so on.
        """
        members = [self.members[self.starts[number] : self.ends[number]] for number in order.tolist()]
        return Units(np.concatenate(members), np.cumsum(self.sizes[order]))

    def longest(self, lengths: Lengths) -> np.ndarray:
        """Array of shape [batches]: tokens of the longest sample of each."""
        return np.maximum.reduceat(lengths.tokens[self.members], self.starts)


def samples_in(budget: Budget, lengths: Lengths) -> int:
    """About how many samples a batch has, without its padding.

    Args:
        budget: The most that it may hold.
        lengths: Of all samples.
    """
    return budget.tokens * len(lengths) // max(int(lengths.tokens.sum()), 1)


def packed(lengths: Lengths, order: np.ndarray, budget: Budget, window: int = WINDOW) -> Units:
    """Rows that are as full as can be: best fit decreasing over tokens and patches, window by window.

    What is left of a window, its emptiest row, waits for the next one. Samples that can't be used have no
    length, and are spread over the rows of their window.

    Args:
        lengths: Of all samples; `budget` holds each.
        order: Array of shape [samples], int64: the order that windows are cut from.
        budget: The most that a row may hold.
        window: Samples in a window.
    """

    def fill(samples: list[int]) -> list[list[int]]:
        return _best_fit(lengths, samples, budget)

    def emptiest(rows: list[list[int]]) -> int:
        return _emptiest(lengths, rows, budget)

    return _by_windows(lengths, order, window, fill, emptiest)


def padded(lengths: Lengths, order: np.ndarray, budget: Budget, window: int = WINDOW) -> Units:
    """Batches of samples of similar length that fit into a budget with their padding, window by window.

    Args:
        lengths: Of all samples; `budget` holds each.
        order: Array of shape [samples], int64: the order that windows are cut from.
        budget: The most that a batch may hold: its tokens are its samples times the longest of them.
        window: Samples in a window, where it is then about 16 batches or more.
    """
    window = max(window, 16 * samples_in(budget, lengths))

    def fill(samples: list[int]) -> list[list[int]]:
        return _fill_in_turn(lengths, samples, budget)

    def last(batches: list[list[int]]) -> int:
        return len(batches) - 1

    return _by_windows(lengths, order, window, fill, last)


def alike(lengths: Lengths, order: np.ndarray, batch_size: int, window: int = WINDOW) -> Units:
    """Batches of so many samples of similar length, window by window, from short to long in each.

    Args:
        lengths: Of all samples.
        order: Array of shape [samples], int64: the order that windows are cut from.
        batch_size: Samples in a batch.
        window: Samples in a window, about: it is cut behind a whole batch, and has 16 of them at least.
    """
    window = batch_size * max(16, window // batch_size)
    by_length = [
        part[np.argsort(lengths.tokens[part], kind="stable")]
        for part in np.split(order, range(window, len(order), window))
    ]
    return Units.of_size(np.concatenate(by_length), batch_size)


def _by_windows(
    lengths: Lengths,
    order: np.ndarray,
    window: int,
    fill: Callable[[list[int]], list[list[int]]],
    emptiest: Callable[[list[list[int]]], int],
) -> Units:
    """Fill batches from one window after the other; the emptiest one of each waits for the next window."""
    batches: list[list[int]] = []
    waiting: list[int] = []
    for start in range(0, len(order), window):
        of_window = waiting + order[start : start + window].tolist()
        usable: list[int] = []
        unusable: list[int] = []
        for sample in of_window:
            kind = usable if lengths.tokens[sample] else unusable
            kind.append(sample)
        filled = fill(usable)
        waiting = []
        is_last = start + window >= len(order)
        if filled and not is_last:
            waiting = filled.pop(emptiest(filled))
        batches += _spread(unusable, filled)
    return Units.of_lists(batches)


def _best_fit(lengths: Lengths, samples: list[int], budget: Budget) -> list[list[int]]:
    """Put each sample, large ones first, into the fullest row that still has room; open rows as needed."""
    needs, room = _needs(lengths, samples, budget)
    shares = needs / room
    # Rows are looked for by the resource of which samples need more.
    scarce = int(np.argmax(shares.sum(0)))
    other = 1 - scarce
    largest_first = np.argsort(-shares.max(1), kind="stable")
    rows: list[list[int]] = []
    # What each row has left of the other resource.
    rooms: list[int] = []
    # What each row has left of the scarce one, and its number, from full to empty.
    free: list[tuple[int, int]] = []
    for place in largest_first.tolist():
        need, of_other = int(needs[place, scarce]), int(needs[place, other])
        at = bisect.bisect_left(free, (need, -1))
        while at < len(free) and rooms[free[at][1]] < of_other:
            at += 1
        if at < len(free):
            left, row = free.pop(at)
        else:
            left, row = int(room[scarce]), len(rows)
            rows.append([])
            rooms.append(int(room[other]))
        rows[row].append(samples[place])
        rooms[row] -= of_other
        bisect.insort(free, (left - need, row))
    return rows


def _fill_in_turn(lengths: Lengths, samples: list[int], budget: Budget) -> list[list[int]]:
    """Fill one batch after the other, long samples first."""
    needs, (tokens, patches) = _needs(lengths, samples, budget)
    batches: list[list[int]] = []
    longest = pictures = 0
    for place in np.argsort(-needs[:, 0], kind="stable").tolist():
        length, of_pictures = needs[place].tolist()
        with_it = len(batches[-1]) + 1 if batches else 1
        fits = with_it * longest <= tokens and pictures + of_pictures <= patches
        if not batches or not fits:
            batches.append([])
            longest, pictures = length, 0
        batches[-1].append(samples[place])
        pictures += of_pictures
    return batches


def _needs(lengths: Lengths, samples: list[int], budget: Budget) -> tuple[np.ndarray, np.ndarray]:
    """Array of shape [samples, 2]: their tokens and patches; and how many of both a batch may hold."""
    tokens, patches = lengths.tokens[samples], lengths.patches[samples]
    most_patches = budget.patches
    if most_patches is None:
        most_patches = max(int(patches.sum(dtype=np.int64)), 1)
    needs = np.stack([tokens, patches], axis=1).astype(np.int64)
    return needs, np.array([budget.tokens, most_patches])


def _emptiest(lengths: Lengths, rows: list[list[int]], budget: Budget) -> int:
    """Which row has most room."""
    filled = []
    for row in rows:
        shares = [lengths.tokens[row].sum() / budget.tokens]
        if budget.patches is not None:
            shares.append(lengths.patches[row].sum() / budget.patches)
        filled.append(max(shares))
    return int(np.argmin(filled))


def _spread(samples: list[int], batches: list[list[int]]) -> list[list[int]]:
    """Deal samples that have no length out to batches."""
    if samples and not batches:
        return [samples]
    for place, sample in enumerate(samples):
        batches[place % len(batches)].append(sample)
    return batches
