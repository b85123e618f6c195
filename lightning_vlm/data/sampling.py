"""Which samples share a batch: the same for every way of splitting the work, and resumable."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

NOTHING = -1
"""Stands for no sample, where the last batch can't be filled."""


class Batches(DistributedSampler):
    """Batches of indices for one rank.

    The order depends only on the seed and the epoch. Step `s` of all ranks together takes the next
    `world × batch_size` indices of it, so 2 ranks × 4 see what 1 rank × 8 sees. The last step is filled up
    with `NOTHING` instead of repeating samples, so that every sample comes exactly once an epoch on one rank
    and all ranks have equally many batches. It is a DistributedSampler so that Lightning leaves it in place
    (and would otherwise put in one that shuffles and repeats).

    Args:
        size: Number of samples.
        batch_size: Samples in a batch of one rank.
        shuffle: Draw a new order each epoch.
        seed: Chooses the orders.
        rank: This process.
        world: Number of processes.

    >>> list(Batches(5, batch_size=2, shuffle=False, seed=0, rank=1, world=2))
    [[2, 3], [-1, -1]]
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int, world: int) -> None:
        super().__init__(range(size), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size = size, batch_size
        self.skip = 0
        """How many batches the next pass leaves out at its beginning: those that a resumed run has seen."""

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.num_replicas))

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        start, self.skip = self.skip, 0
        for step in range(start, len(self)):
            first = (step * self.num_replicas + self.rank) * self.batch_size
            batch = order[first : first + self.batch_size]
            yield batch + [NOTHING] * (self.batch_size - len(batch))


class ResumableLoader(DataLoader):
    """A DataLoader over `Batches` that a checkpoint in the middle of an epoch resumes at the next batch.

    Made as `ResumableLoader(dataset, sampler=Batches(...), batch_size=None)`, where the dataset takes a list of
    indices and gives a whole batch. (It has no `__init__` of its own: Lightning makes it anew to predict.)
    """

    _seen = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.sampler, Batches)
        self._seen = self.sampler.skip
        for batch in super().__iter__():
            self._seen += 1
            yield batch

    def __len__(self) -> int:
        assert isinstance(self.sampler, Sized)
        return len(self.sampler)

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch have been handed out; none of the next, once all have."""
        return {"seen": self._seen % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass behind the batches already seen."""
        assert isinstance(self.sampler, Batches)
        self.sampler.skip = self._seen = state["seen"]
