"""Which samples share a batch: the same for every way of splitting the work."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DistributedSampler

PAD_INDEX = -1
"""Stands for no sample, where the last batch can't be filled."""


class ResumableBatchSampler(DistributedSampler):
    """Draws batches of indices for one rank.

    The order depends only on `seed` and the epoch. Step `s` of all ranks together takes the next
    `world × batch_size` indices of it, so 2 ranks × 4 see what 1 rank × 8 sees. The last step is padded with
    `PAD_INDEX` instead of repeating samples, so every sample comes exactly once an epoch on exactly one rank,
    and all ranks have equally many batches. This is a `DistributedSampler` so that Lightning leaves it in
    place: it would replace any other sampler by one that shuffles and repeats.

    Args:
        size: Number of samples.
        batch_size: Samples in a batch of one rank.
        shuffle: Draw a new order each epoch.
        seed: Chooses the orders.
        rank: This process.
        world: Number of processes.

    >>> list(ResumableBatchSampler(5, batch_size=2, shuffle=False, seed=0, rank=1, world=2))
    [[2, 3], [-1, -1]]
    """

    description = "each sample once"
    """How samples are chosen, in words; a resumed run compares it with the checkpoint's."""

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int, world: int) -> None:
        super().__init__(range(size), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.skip = 0
        """How many batches a pass leaves out at its beginning: those that a resumed run has seen."""

    @property
    def global_batch_size(self) -> int:
        """Samples in the batches of all ranks together."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        for places in self.places():
            batch = order[places.start : places.stop]
            yield batch + [PAD_INDEX] * (self.batch_size - len(batch))

    def places(self) -> Iterator[range]:
        """The places that this rank's batches have in the order of the epoch."""
        for step in range(self.skip, len(self)):
            start = (step * self.num_replicas + self.rank) * self.batch_size
            yield range(start, start + self.batch_size)

    def begin(self, passed: int) -> None:
        """Called before a pass: how many samples, on all ranks, the pass before handed out."""

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on besides `seed` and the epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
