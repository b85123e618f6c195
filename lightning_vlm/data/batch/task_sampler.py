"""Batches whose samples are drawn by task."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vlm.data.batch.sampler import ResumableBatchSampler
from lightning_vlm.data.batch.task_sampling import LossShares, TaskSampling
from lightning_vlm.data.conversation import TaskTable
from lightning_vlm.errors import UserError


class TaskBatchSampler(ResumableBatchSampler):
    """Batches of indices for one rank, their tasks drawn with the probabilities of a `TaskSampling`.

    All ranks draw the same samples and each takes its own, so 2 ranks × 4 see what 1 rank × 8 sees, or 4 × 2
    accumulated (but with `grouped`, where a batch of all ranks is what has one task). Samples of an epoch are
    drawn in rounds of `every_n_samples`. What a round draws depends on the seed, the epoch, its number, its
    probabilities and what was drawn before; with `hard` and `easy` its probabilities are those of the losses
    one round earlier, however far ahead batches are prepared. What an epoch leaves of a pass over a task
    comes in the next one.

    Args:
        table: The task of each sample.
        sampling: How tasks are drawn.
        batch_size: Samples in a batch of one rank.
        shuffle: Draw a new order for each pass over a task.
        seed: Chooses what is drawn.
        rank: This process.
        world: Number of processes.

    Raises:
        UserError: As `TaskSampling.scores`.

    >>> table = TaskTable.of_samples(["vqa"] * 6 + ["ocr"] * 2)
    >>> batches = TaskBatchSampler(table, TaskSampling(grouped=True), 4, False, 0, rank=0, world=1)
    >>> list(batches)
    [[0, 1, 2, 3], [4, 5, 0, 1]]
    """

    def __init__(
        self,
        table: TaskTable,
        sampling: TaskSampling,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        super().__init__(len(table.of), batch_size, shuffle, seed, rank, world)
        self.names, self.sampling = table.names, sampling
        self.description = f"{sampling} of {', '.join(table.names)}"
        of = np.frombuffer(table.of, dtype=np.uint16)
        self._members = [torch.from_numpy(np.flatnonzero(of == task)) for task in range(len(table.names))]
        self._scores = sampling.scores(table)
        self._round_size = sampling.every_n_samples
        if sampling.grouped:  # a batch is never in two rounds
            self._round_size = -(-self._round_size // self.global_batch_size) * self.global_batch_size
        self._losses = LossShares(len(self.names))
        self._epoch_of = -1
        self._first = [0] * len(self.names)
        """Samples of each task drawn before this epoch."""
        self._known: list[Any] = [self._losses.now()]
        """How far the losses had come before the step in which the r-th round of the epoch ended."""
        self._forget()

    def __iter__(self) -> Iterator[list[int]]:
        if self._epoch_of != self.epoch:  # used without a ResumableLoader
            self.begin(0)
        for step in range(self.skip, len(self)):
            first = (step * self.num_replicas + self.rank) * self.batch_size
            yield [self._index(place) for place in range(first, first + self.batch_size)]

    def begin(self, passed: int) -> None:
        """Begin an epoch, or continue one.

        Args:
            passed: How many samples, on all ranks, were handed out in the epoch before.
        """
        if self._epoch_of == self.epoch:
            return
        if self._epoch_of >= 0:
            self._first = self.drawn(passed)
        self._epoch_of, self._known = self.epoch, [self._losses.now()]
        self._forget()

    def check_ahead(self, batches: int) -> None:
        """Whether losses come in time.

        Args:
            batches: How many batches may be drawn before the losses of one are known.

        Raises:
            UserError: They don't.
        """
        needed = batches * self.global_batch_size
        if self.sampling.by_loss and self._round_size < needed:
            raise UserError(
                f"sampling.every_n_samples: found {self.sampling.every_n_samples}; expected {needed} or "
                "more, because so many samples may be prepared before their losses are known (num_workers, "
                "accumulate_grad_batches and batch_size make it so)"
            )

    def drawn(self, place: int) -> list[int]:
        """How many samples of each task have been drawn, in all epochs.

        Args:
            place: Up to which sample of this epoch, all ranks together.
        """
        number, at = divmod(place, self._round_size)
        tasks = self._round_tasks(number) if at else torch.zeros(0, dtype=torch.int64)
        return _plus(self._start(number), tasks[:at])

    def samples(self, place: int) -> dict[str, int]:
        """`drawn` by name."""
        return dict(zip(self.names, self.drawn(place), strict=True))

    def epochs(self, place: int) -> dict[str, float]:
        """How often each task's data has been gone through up to a place; see `drawn`."""
        drawn = zip(self.names, self.drawn(place), self._members, strict=True)
        return {name: count / len(members) for name, count, members in drawn}

    def end_step(self, sums: Tensor, counts: Tensor, place: int) -> None:
        """Take in the losses of an optimizer step; the host doesn't wait for the device.

        Args:
            sums: Tensor of shape [tasks]: of losses, the same on all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
            place: Samples of this epoch that have been trained on, all ranks together.
        """
        if not self.sampling.by_loss:
            return
        while len(self._known) * self._round_size <= place:
            self._known.append(self._losses.now())
        self._losses.add(sums, counts)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What draws the same samples again."""
        self._known = [_listed(one) for one in self._known]
        return {
            "epoch": self._epoch_of,
            "first": list(self._first),
            "known": list(self._known),
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._epoch_of, self._first, self._known = state["epoch"], list(state["first"]), list(state["known"])
        self._losses.load_state_dict(state["losses"])
        self._forget()

    # Rounds

    def _forget(self) -> None:
        self._starts = [self._first]
        self._rounds: dict[int, Tensor] = {}

    def _index(self, place: int) -> int:
        number, at = divmod(place, self._round_size)
        if number not in self._rounds:
            # A batch may lie in two rounds; older ones are not needed again.
            self._rounds = {old: one for old, one in self._rounds.items() if old == number - 1}
            self._rounds[number] = self._draw(number)
        return int(self._rounds[number][at])

    def _start(self, number: int) -> list[int]:
        """Samples of each task drawn before a round."""
        while len(self._starts) <= number:
            self._starts.append(_plus(self._starts[-1], self._round_tasks(len(self._starts) - 1)))
        return self._starts[number]

    def _round_tasks(self, number: int) -> Tensor:
        """The task of each sample of a round."""
        scores: list[float] = self._scores
        if self.sampling.by_loss:
            before = max(number - 1, 0)
            if before >= len(self._known):
                raise UserError(
                    f"sampling.score {self.sampling.score}: no losses of tasks were reported; train a "
                    "VLMModule, which reports them, or take another score"
                )
            self._known[before] = _listed(self._known[before])
            left = self._known[before]
            scores = left if self.sampling.score == "hard" else [1 / one for one in left]
        generator = _generator(self.seed, self._epoch_of, number)
        each = self.global_batch_size if self.sampling.grouped else 1
        chances = self.sampling.probabilities(scores)
        drawn = torch.multinomial(chances, self._round_size // each, replacement=True, generator=generator)
        return drawn.repeat_interleave(each)

    def _draw(self, number: int) -> Tensor:
        """The samples of a round."""
        tasks = self._round_tasks(number)
        samples = torch.empty_like(tasks)
        for task, begin in enumerate(self._start(number)):
            (places,) = (tasks == task).nonzero(as_tuple=True)
            members = self._members[task]
            at = 0
            while at < len(places):
                turn, inside = divmod(begin + at, len(members))
                some = self._pass(task, turn)[inside : inside + len(places) - at]
                samples[places[at : at + len(some)]] = some
                at += len(some)
        return samples

    def _pass(self, task: int, turn: int) -> Tensor:
        """All samples of a task in the order of one pass."""
        members = self._members[task]
        if not self.shuffle:
            return members
        generator = _generator(self.seed, self.names[task], turn)
        return members[torch.randperm(len(members), generator=generator)]


def _generator(*place: object) -> torch.Generator:
    """Chance that is the same in every process, as `hash` isn't."""
    return torch.Generator().manual_seed(Random(" ".join(map(str, place))).getrandbits(63))


def _plus(counts: list[int], tasks: Tensor) -> list[int]:
    more = torch.bincount(tasks, minlength=len(counts)).tolist()
    return [one + other for one, other in zip(counts, more, strict=True)]


def _listed(values: Tensor | list[float]) -> list[float]:
    return values.tolist() if isinstance(values, Tensor) else values
