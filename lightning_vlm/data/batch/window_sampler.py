"""Batches of samples that are mixed in windows."""

from collections.abc import Sequence
from typing import Any

from lightning_vlm.data.batch.sampler import ResumableBatchSampler
from lightning_vlm.data.batch.windows import Windows


class WindowSampler(ResumableBatchSampler):
    """Draws batches as `ResumableBatchSampler` does, in an order that keeps near what lies together.

    Args:
        windows: Which samples lie together.
        batch_size: As of `ResumableBatchSampler`; so are the others.
        shuffle: Likewise.
        seed: Likewise.
        rank: Likewise.
        world: Likewise.

    >>> windows = Windows.of_rows([2, 2], window=2)
    >>> list(WindowSampler(windows, batch_size=2, shuffle=True, seed=0, rank=0, world=1))
    [[0, 1], [2, 3]]
    """

    def __init__(
        self, windows: Windows, batch_size: int, shuffle: bool, seed: int, rank: int, world: int
    ) -> None:
        super().__init__(len(windows), batch_size, shuffle, seed, rank, world)
        self._windows = windows

    def order(self) -> Sequence[int]:
        """All samples in the order that this epoch draws."""
        return self._windows.order(self.seed, self.epoch)

    def settings(self) -> dict[str, Any]:
        """As of `ResumableBatchSampler`; other shards or windows have other orders."""
        window = {"data.streaming.shuffle_window": self._windows.window} if self.shuffle else {}
        return {**super().settings(), **window, "the checksum of all shards": self._windows.shards}
