"""The samples of each task, gone through again and again."""

import numpy as np
import torch
from torch import Tensor

from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.batch.windows import chance as chance
from lightning_vlm.data.task_table import TaskTable


class TaskPasses:
    """Deals the samples of each task in passes: none comes again before all others of its task have come.

    Args:
        table: The task of each sample.
        shuffle: Draw a new order for each pass over a task.
        seed: Chooses the orders.
        windows: Which samples lie together, if orders are to keep them near.

    >>> passes = TaskPasses(TaskTable.of_samples(["vqa", "ocr", "vqa"]), shuffle=False, seed=0)
    >>> passes.deal(torch.tensor([0, 0, 1, 0]), before=[1, 0]).tolist()
    [2, 0, 1, 2]
    """

    def __init__(self, table: TaskTable, shuffle: bool, seed: int, windows: Windows | None = None) -> None:
        self.names = table.names
        self._shuffle = shuffle
        self._seed = seed
        task_of = np.frombuffer(table.of, dtype=np.uint16)
        self.members = [torch.from_numpy(np.flatnonzero(task_of == task)) for task in range(len(table.names))]
        """The samples of each task."""
        share = 1 / len(table.names)
        self._windows = windows and [
            windows.among(task_of == task, share) for task in range(len(table.names))
        ]

    @property
    def sizes(self) -> list[int]:
        """How many samples each task has."""
        return [len(members) for members in self.members]

    def deal(self, tasks: Tensor, before: list[int]) -> Tensor:
        """The next samples of some tasks.

        Args:
            tasks: Tensor of shape [draws], int64: the task of each.
            before: How many of each task have been dealt before.

        Returns:
            Tensor of shape [draws], int64.
        """
        samples = torch.empty_like(tasks)
        for task, drawn in enumerate(before):
            (places,) = (tasks == task).nonzero(as_tuple=True)
            while len(places):
                number, start = divmod(drawn, len(self.members[task]))
                following = self._pass(task, number, start, start + len(places))
                samples[places[: len(following)]] = following
                places = places[len(following) :]
                drawn += len(following)
        return samples

    def _pass(self, task: int, number: int, start: int, stop: int) -> Tensor:
        """The samples of a task from one place of a pass to another."""
        members = self.members[task]
        if not self._shuffle:
            return members[start:stop]
        key = (self._seed, self.names[task], number)
        if self._windows:
            return self._windows[task].order(*key).between(start, stop)
        return members[torch.randperm(len(members), generator=chance(*key))][start:stop]


def plus(counts: list[int], tasks: Tensor) -> list[int]:
    """How many there are of each task with some more."""
    return (torch.tensor(counts) + torch.bincount(tasks, minlength=len(counts))).tolist()
