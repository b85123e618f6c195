"""Which samples share a batch: the same for every way of splitting the work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DistributedSampler

from lightning_vlm.data.batch.packing import Units
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.read.stream import Stream

PAD_INDEX = -1
"""Stands for no sample, where the last batch can't be filled."""


def ranks_of(trainer: Trainer | None) -> tuple[int, int]:
    """Which process this is, of how many."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


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
        self.first_epoch = 0
        """From which epoch of the run on its own are counted."""
        self.times = 0
        """Into how many stretches of an epoch the data changes; 0 is for data that doesn't."""

    @property
    def global_batch_size(self) -> int:
        """Samples in the batches of all ranks together."""
        return self.batch_size * self.num_replicas

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the run that comes next."""
        super().set_epoch(epoch - self.first_epoch)

    def __len__(self) -> int:
        return -(-self.size // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order() if self.shuffle else range(self.size)
        for places in self.places():
            batch = [self.at_time(order[place], place) for place in places if place < self.size]
            yield batch + [PAD_INDEX] * (self.batch_size - len(batch))

    def order(self) -> Sequence[int]:
        """All samples in the order that this epoch draws."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.size, generator=generator).tolist()

    def places(self) -> Iterator[range]:
        """The places that this rank's batches have in the order of the epoch."""
        for step in range(self.skip, len(self)):
            start = (step * self.num_replicas + self.rank) * self.batch_size
            yield range(start, start + self.batch_size)

    def at_time(self, index: int, place: int) -> int:
        """The index of a sample, which says when it comes if the data changes with time.

        Args:
            index: Of the sample.
            place: Of all samples of this epoch.
        """
        if index == PAD_INDEX or not self.times:
            return index
        stretch = min(place * self.times // self.size, self.times - 1)
        return index + self.size * (self.times * self.epoch + stretch)

    def passed(self, batches: int) -> int:
        """How many samples the first batches of this epoch have, those of all ranks together."""
        return min(batches * self.global_batch_size, self.size)

    # Where an epoch is, in numbers that don't depend on how many ranks there are

    counted_in = "samples"
    """What positions are counted in."""

    @property
    def places_of_epoch(self) -> int:
        """The position at which an epoch ends."""
        return self.size

    @property
    def places_of_batch(self) -> int:
        """How much further a position is after one more batch of each rank."""
        return self.global_batch_size

    def settings(self) -> dict[str, Any]:
        """What the order of an epoch depends on, in words for the error of a resumed run."""
        return {
            "sampling": self.description,
            "samples": self.size,
            "seed": self.seed,
            "shuffle": int(self.shuffle),
        }

    def begin(self, passed: int) -> None:
        """Called before a pass: how many samples, on all ranks, the pass before handed out."""

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on besides `seed` and the epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""


class StreamSampler(ResumableBatchSampler):
    """Batches of what has come in by now, on one process.

    Args:
        stream: Where it comes from.
        batch_size: Samples in a batch at most.
    """

    def __init__(self, stream: Stream, batch_size: int) -> None:
        super().__init__(len(stream), batch_size, False, 0, 0, 1)
        self._stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        while numbers := self._stream.take(self.batch_size):
            yield numbers


def in_order(
    given: object, samples: Conversations, batch_size: int, seed: int, rank: int, world: int
) -> ResumableBatchSampler:
    """Batches of samples in their order, or as they come.

    Args:
        given: What the split was given; a stream gives its own batches.
        samples: Of the split.
        batch_size: As of `ResumableBatchSampler`; so are the others.
        seed: Likewise.
        rank: Likewise.
        world: Likewise.
    """
    if isinstance(given, Stream):
        return StreamSampler(given, batch_size)
    return ResumableBatchSampler(len(samples), batch_size, False, seed, rank, world)


class UnitSampler(ResumableBatchSampler):
    """Deals batches that are made beforehand to ranks.

    Step `s` of rank `r` takes batch `s × world + r` of the epoch, so 2 ranks see what 1 rank sees that
    accumulates 2. Where batches run out, the last step is filled with empty ones.

    Args:
        units_of: The batches of an epoch, given its number; each epoch has equally many.
        batches: How many.
        made_by: What they depend on besides `seed`, such as `{"batching": "packed", "max_tokens": 8192}`.
        size: Number of samples.
        shuffle: Whether their order depends on the epoch.
        seed: Chooses the orders.
        rank: This process.
        world: Number of processes.

    >>> units = Units.of_lists([[3, 1], [2], [0]])
    >>> sampler = UnitSampler(lambda epoch: units, 3, {}, size=4, shuffle=False, seed=0, rank=1, world=2)
    >>> list(sampler), sampler.passed(1)
    ([[2], []], 3)
    """

    def __init__(
        self,
        units_of: Callable[[int], Units],
        batches: int,
        made_by: Mapping[str, Any],
        size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        super().__init__(size, 1, shuffle, seed, rank, world)
        self._units_of = units_of
        self._batches = batches
        self._made_by = made_by
        self._units: tuple[int, Units] | None = None

    def __len__(self) -> int:
        return -(-self._batches // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        units = self._of_epoch()
        for step in range(self.skip, len(self)):
            number = step * self.num_replicas + self.rank
            yield units[number] if number < len(units) else []

    def passed(self, batches: int) -> int:
        """How many samples the first batches of this epoch have, those of all ranks together."""
        units = self._of_epoch()
        return units.samples_before(min(batches * self.num_replicas, len(units)))

    counted_in = "batches"

    @property
    def places_of_epoch(self) -> int:
        """The position at which an epoch ends."""
        return self._batches

    @property
    def places_of_batch(self) -> int:
        """How much further a position is after one more batch of each rank."""
        return self.num_replicas

    def settings(self) -> dict[str, Any]:
        """What the order of an epoch depends on, in words for the error of a resumed run."""
        return {**super().settings(), **self._made_by}

    def _of_epoch(self) -> Units:
        if self._units is None or self._units[0] != self.epoch:
            self._units = self.epoch, self._units_of(self.epoch)
        return self._units[1]
