"""Batches of lengths that fit together, whose samples are drawn by task."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from lightning_vlm.data.batch.draws_by_task import DrawsByTask
from lightning_vlm.data.batch.packing import Units
from lightning_vlm.data.batch.sampler import UnitSampler
from lightning_vlm.data.batch.task_passes import TaskPasses, chance, plus
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.conversation import TaskTable


class DrawnUnits:
    """Batches made of an endless stream of samples, drawn by task with probabilities that stay.

    The stream is cut into windows, and each window is made into batches of its own. Epoch `e` has the batches
    `e × per_epoch` and following. So what comes depends on `seed` and place alone.

    Args:
        table: The task of each sample.
        sampling: How tasks are drawn.
        make: Makes batches of the samples of a window, some of which may be in it twice.
        window: Samples in a window.
        per_epoch: Batches in an epoch.
        shuffle: Draw a new order for each pass over a task, and of the batches of a window.
        seed: Chooses what is drawn.

    Raises:
        UserError: As `TaskSampling.scores`.
    """

    def __init__(
        self,
        table: TaskTable,
        sampling: TaskSampling,
        make: Callable[[np.ndarray], Units],
        window: int,
        per_epoch: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.per_epoch = per_epoch
        self.names = table.names
        self._task_of = np.array(table.of, np.int64)
        self._passes = TaskPasses(table, shuffle, seed)
        self.task_sizes = self._passes.sizes
        self._chances = sampling.probabilities(sampling.scores(table))
        self._make = make
        self._window = window
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = -1
        self._units = Units.of_lists([])
        self._before = [0] * len(self.names)
        self._stream = self._batches()

    def of_epoch(self, epoch: int) -> tuple[Units, list[int]]:
        """The batches of an epoch, and how many samples of each task came in the epochs before."""
        if epoch < self._epoch:
            self._epoch, self._before = -1, [0] * len(self.names)
            self._stream = self._batches()
        while self._epoch < epoch:
            if self._epoch >= 0:
                self._before = self.counts(self._units.members, self._before)
            self._units = Units.of_lists(list(itertools.islice(self._stream, self.per_epoch)))
            self._epoch += 1
        return self._units, list(self._before)

    def counts(self, samples: np.ndarray, before: list[int]) -> list[int]:
        """How many samples of each task there are with some more."""
        return plus(before, torch.from_numpy(self._task_of[samples]))

    def _batches(self) -> Iterator[list[int]]:
        drawn = [0] * len(self.names)
        for number in itertools.count():
            generator = chance(self._seed, "window", number)
            tasks = torch.multinomial(self._chances, self._window, replacement=True, generator=generator)
            units = self._make(self._passes.deal(tasks, drawn).numpy())
            drawn = plus(drawn, tasks)
            order = torch.arange(len(units))
            if self._shuffle:
                order = torch.randperm(len(units), generator=generator)
            for place in order.tolist():
                yield units[place]


class TaskUnitSampler(DrawsByTask, UnitSampler):
    """Deals batches of `DrawnUnits` to ranks, and counts what was drawn of each task.

    Args:
        drawn: The batches.
        sampling: How tasks are drawn.
        made_by: As of `UnitSampler`; so are the others.
        size: Number of samples.
        shuffle: Whether their order is drawn.
        seed: Chooses what is drawn.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self,
        drawn: DrawnUnits,
        sampling: TaskSampling,
        made_by: dict[str, Any],
        size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        def units_of(epoch: int) -> Units:
            return drawn.of_epoch(epoch)[0]

        super().__init__(units_of, drawn.per_epoch, made_by, size, shuffle, seed, rank, world)
        self.description = f"{sampling} of {', '.join(drawn.names)}"
        self.names = drawn.names
        self.task_sizes = drawn.task_sizes
        self._drawn = drawn

    def drawn(self, place: int) -> list[int]:
        """How many samples of each task have been drawn, in all epochs.

        Args:
            place: Up to which sample of this epoch, all ranks together.
        """
        units, before = self._drawn.of_epoch(self.epoch)
        return self._drawn.counts(units.members[:place], before)
