"""Orders of samples that are mixed in windows, so that reading them keeps few parts of files in memory."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 256 << 20
"""How much of its files a window holds in memory at most, where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Blocks of samples that lie together in files, and how many samples are mixed.

    A block is what is read at once: a row group of a parquet file, or some neighbouring rows of a file whose
    rows can be read alone. The order of an epoch is made of two draws: all blocks are put in a random order,
    then cut into windows of at least `window` samples, and the samples of each window are shuffled. It is a
    function of a seed, so that any place of it is known without reading what comes before.

    Args:
        starts: Array of shape [blocks], int64: the first sample of each.
        rows: Array of shape [blocks], int64: how many samples each has, at least 1.
        sizes: Array of shape [blocks], int64: bytes that are in memory while its samples are read; 0 where
            they are read alone.
        window: How many samples are mixed.
        shards: A checksum of the files; other files have other orders.
        most_bytes: How much of the files a window holds in memory at most, if it has more than one block.

    >>> windows = Windows.of_rows([3, 3, 2], window=5)
    >>> order = windows.order(0)
    >>> sorted(order), list(order) == list(windows.order(0)), list(order) == list(windows.order(1))
    ([0, 1, 2, 3, 4, 5, 6, 7], True, False)
    """

    starts: np.ndarray
    rows: np.ndarray
    sizes: np.ndarray
    window: int
    shards: str = ""
    most_bytes: int = MOST_BYTES

    @classmethod
    def of_rows(
        cls, rows: Sequence[int], window: int, sizes: Sequence[int] | None = None, shards: str = ""
    ) -> "Windows":
        """Of blocks that follow each other.

        Args:
            rows: How many samples each has.
            window: As of `Windows`; so are the others.
            sizes: None is 0 for each.
            shards: Likewise.
        """
        counts = np.asarray(rows, np.int64)
        weights = np.zeros_like(counts) if sizes is None else np.asarray(sizes, np.int64)
        return cls(np.cumsum(counts) - counts, counts, weights, window, shards)

    def __len__(self) -> int:
        """How many samples there are."""
        return int(self.rows.sum())

    def among(self, samples: np.ndarray, share: float) -> "Windows":
        """The blocks of some samples, with windows that are a share as large.

        Args:
            samples: Array of bool, of shape [samples]; those of a block are all alike.
            share: Above 0.
        """
        kept = samples[self.starts]
        limits = max(1, round(self.window * share)), self.shards, round(self.most_bytes * share)
        return Windows(self.starts[kept], self.rows[kept], self.sizes[kept], *limits)

    @property
    def most_blocks(self) -> int:
        """How many blocks that are read at once a window may have at most; 1 or more."""
        heavy = self.sizes > 0
        if not heavy.any():
            return 1
        by_rows = self.window // int(self.rows[heavy].min()) + 1
        by_bytes = self.most_bytes // int(self.sizes[heavy].min()) + 1
        return max(1, min(by_rows, by_bytes, int(heavy.sum())))

    def order(self, *key: object) -> "WindowOrder":
        """The order of an epoch.

        Args:
            key: What it depends on, such as a seed and the number of the epoch.
        """
        return WindowOrder(self, key)


class WindowOrder(Sequence[int]):
    """All samples of some blocks, in the order that `Windows` describes. Only two windows are in memory.

    Args:
        windows: The blocks.
        key: What the order depends on.
    """

    def __init__(self, windows: Windows, key: tuple[object, ...]) -> None:
        self._windows = windows
        self._key = key
        blocks = torch.randperm(len(windows.rows), generator=chance(*key)).numpy()
        self._blocks = blocks.astype(np.int64)
        self._firsts = list(_first_blocks(windows, self._blocks))
        """The place in `_blocks` of the first block of each window, and the end."""
        ends = np.cumsum(windows.rows[self._blocks])
        self._ends = [int(ends[first - 1]) for first in self._firsts[1:]]
        """The number of samples up to the end of each window."""
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def window_sizes(self) -> list[int]:
        """How many samples each window has."""
        return [end - start for start, end in zip([0, *self._ends], self._ends, strict=False)]

    def __getitem__(self, place: int) -> int:  # type: ignore[override]  # an order has no slices
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = bisect.bisect_right(self._ends, place)
        return int(self._window(number)[place - self._start(number)])

    def between(self, start: int, stop: int) -> Tensor:
        """The samples from one place to another.

        Returns:
            Tensor of shape [stop - start], int64; shorter at the end.
        """
        stop = min(stop, len(self))
        pieces = []
        while start < stop:
            number = bisect.bisect_right(self._ends, start)
            first = self._start(number)
            pieces.append(self._window(number)[start - first : stop - first])
            start = self._ends[number]
        return torch.from_numpy(np.concatenate(pieces) if pieces else np.zeros(0, np.int64))

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _window(self, number: int) -> np.ndarray:
        """The samples of a window, shuffled."""
        if number not in self._known:
            self._known = {old: known for old, known in self._known.items() if old == number - 1}
            blocks = self._blocks[self._firsts[number] : self._firsts[number + 1]]
            spans = zip(self._windows.starts[blocks], self._windows.rows[blocks], strict=True)
            samples = np.concatenate([np.arange(start, start + rows) for start, rows in spans])
            mixed = torch.randperm(len(samples), generator=chance(*self._key, "window", number)).numpy()
            self._known[number] = samples[mixed]
        return self._known[number]


def chance(*key: object) -> torch.Generator:
    """Chance that is the same in every process, as `hash` isn't."""
    return torch.Generator().manual_seed(Random(" ".join(map(str, key))).getrandbits(63))


def _first_blocks(windows: Windows, order: np.ndarray) -> Iterator[int]:
    """Where windows begin among blocks in an order, and the end."""
    yield 0
    samples = size = 0
    for place, (rows, weight) in enumerate(
        zip(windows.rows[order].tolist(), windows.sizes[order].tolist(), strict=True)
    ):
        if samples and (samples >= windows.window or (weight and size + weight > windows.most_bytes)):
            yield place
            samples = size = 0
        samples += rows
        size += weight
    if len(order):
        yield len(order)
