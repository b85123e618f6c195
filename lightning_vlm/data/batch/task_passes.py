"""The samples of each task, gone through again and again."""

from random import Random

import numpy as np
import torch
from torch import Tensor

from lightning_vlm.data.conversation import TaskTable


class TaskPasses:
    """Deals the samples of each task in passes: none comes again before all others of its task have come.

    Args:
        table: The task of each sample.
        shuffle: Draw a new order for each pass over a task.
        seed: Chooses the orders.

    >>> passes = TaskPasses(TaskTable.of_samples(["vqa", "ocr", "vqa"]), shuffle=False, seed=0)
    >>> passes.deal(torch.tensor([0, 0, 1, 0]), before=[1, 0]).tolist()
    [2, 0, 1, 2]
    """

    def __init__(self, table: TaskTable, shuffle: bool, seed: int) -> None:
        self.names = table.names
        self._shuffle = shuffle
        self._seed = seed
        task_of = np.frombuffer(table.of, dtype=np.uint16)
        self.members = [torch.from_numpy(np.flatnonzero(task_of == task)) for task in range(len(table.names))]
        """The samples of each task."""

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
                following = self._pass(task, number)[start : start + len(places)]
                samples[places[: len(following)]] = following
                places = places[len(following) :]
                drawn += len(following)
        return samples

    def _pass(self, task: int, number: int) -> Tensor:
        """All samples of a task in the order of one pass."""
        members = self.members[task]
        if not self._shuffle:
            return members
        generator = chance(self._seed, self.names[task], number)
        return members[torch.randperm(len(members), generator=generator)]


def chance(*key: object) -> torch.Generator:
    """Chance that is the same in every process, as `hash` isn't."""
    return torch.Generator().manual_seed(Random(" ".join(map(str, key))).getrandbits(63))


def plus(counts: list[int], tasks: Tensor) -> list[int]:
    """How many there are of each task with some more."""
    return (torch.tensor(counts) + torch.bincount(tasks, minlength=len(counts))).tolist()
