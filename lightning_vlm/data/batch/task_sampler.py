"""Batches whose samples are drawn by task."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vlm.data.batch.draws_by_task import DrawsByTask
from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.task_passes import TaskPasses, chance, plus
from lightning_vlm.data.batch.task_sampling import LossShares, TaskSampling
from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.conversation import TaskTable
from lightning_vlm.errors import UserError


class TaskBatchSampler(DrawsByTask):
    """Draws batches of indices for one rank, their tasks with the probabilities of a `TaskSampling`.

    All ranks draw the same samples and each takes its own, so 2 ranks × 4 see what 1 rank × 8 sees, or 4 × 2
    accumulated (but not with `grouped`, where the batches of all ranks together have one task). Samples of an
    epoch are drawn in rounds of `every_n_samples`. What a round draws depends on `seed`, the epoch, its
    number, its probabilities and what was drawn before; with `hard` and `easy` its probabilities are those of
    the losses one round earlier, however far ahead batches are prepared. What an epoch leaves of a pass over
    a task comes in the next epoch.

    Args:
        table: The task of each sample.
        sampling: How tasks are drawn.
        batch_size: Samples in a batch of one rank.
        shuffle: Draw a new order for each pass over a task.
        seed: Chooses what is drawn.
        rank: This process.
        world: Number of processes.
        windows: Which samples lie together, if orders are to keep them near.

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
        windows: Windows | None = None,
    ) -> None:
        super().__init__(len(table.of), batch_size, shuffle, seed, rank, world)
        self.names = table.names
        self.sampling = sampling
        self.description = f"{sampling} of {', '.join(table.names)}"
        if windows:
            self.description += f" in windows of {windows.window:,} of the shards {windows.shards}"
        self._passes = TaskPasses(table, shuffle, seed, windows)
        self.task_sizes = self._passes.sizes
        self._scores = sampling.scores(table)
        self._round_size = sampling.every_n_samples
        if sampling.grouped:  # a batch is never in two rounds
            self._round_size = -(-self._round_size // self.global_batch_size) * self.global_batch_size
        self._losses = LossShares(len(table.names))
        self._epoch_begun = -1
        self._drawn_before = [0] * len(table.names)
        """Samples of each task drawn before this epoch."""
        self._loss_shares: list[Any] = [self._losses.now()]
        """How much of its loss each task had left before the step in which the r-th round of the epoch ended,
        as a tensor or, once the host has read it, a list."""
        self._forget_rounds()

    def __iter__(self) -> Iterator[list[int]]:
        if self._epoch_begun != self.epoch:  # used without a ResumableLoader
            self.begin(0)
        for places in self.places():
            batch = [self.at_time(self._index(place), place) for place in places if place < self.size]
            yield batch + [PAD_INDEX] * (self.batch_size - len(batch))

    def begin(self, passed: int) -> None:
        """Begin an epoch, or continue one.

        Args:
            passed: How many samples, on all ranks, were handed out in the epoch before.
        """
        if self._epoch_begun == self.epoch:
            return
        if self._epoch_begun >= 0:
            self._drawn_before = self.drawn(passed)
        self._epoch_begun = self.epoch
        self._loss_shares = [self._losses.now()]
        self._forget_rounds()

    def check_ahead(self, batches: int) -> None:
        """Check that the losses of one round are known before the round after the next is drawn.

        Args:
            batches: How many batches may be drawn before the losses of one are known.

        Raises:
            UserError: They may not be known.
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
        number, rest = divmod(place, self._round_size)
        counts = self._drawn_before_round(number)
        return plus(counts, self._draw_tasks(number)[:rest]) if rest else counts

    def end_step(self, sums: Tensor, counts: Tensor, place: int) -> None:
        """Take in the losses of an optimizer step; the host doesn't wait for the device.

        Args:
            sums: Tensor of shape [tasks]: of losses, the same on all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
            place: Samples of this epoch that have been trained on, all ranks together.
        """
        if not self.sampling.by_loss:
            return
        while len(self._loss_shares) * self._round_size <= place:
            self._loss_shares.append(self._losses.now())
        self._losses.add(sums, counts)

    # Checkpoints

    def settings(self) -> dict[str, Any]:
        """What the order of an epoch depends on, in words for the error of a resumed run."""
        settings = super().settings()
        if self.sampling.grouped:
            settings["samples a step"] = self.global_batch_size
        return settings

    def state_dict(self) -> dict[str, Any]:
        """What draws the same samples again."""
        return {
            "epoch": self._epoch_begun,
            "first": list(self._drawn_before),
            "known": [self._read_loss_shares(number) for number in range(len(self._loss_shares))],
            "losses": self._losses.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._epoch_begun = state["epoch"]
        self._drawn_before = list(state["first"])
        self._loss_shares = list(state["known"])
        self._losses.load_state_dict(state["losses"])
        self._forget_rounds()

    # Rounds

    def _forget_rounds(self) -> None:
        self._before_rounds = [self._drawn_before]
        """Samples of each task drawn before each round of the epoch."""
        self._rounds: dict[int, Tensor] = {}
        """The samples of the last two rounds that were needed."""

    def _index(self, place: int) -> int:
        """The sample at a place of the epoch."""
        number, inside = divmod(place, self._round_size)
        if number not in self._rounds:
            # A batch may lie in two rounds; older ones are not needed again.
            self._rounds = {old: samples for old, samples in self._rounds.items() if old == number - 1}
            self._rounds[number] = self._draw_samples(number)
        return int(self._rounds[number][inside])

    def _drawn_before_round(self, number: int) -> list[int]:
        before = self._before_rounds
        while len(before) <= number:
            before.append(plus(before[-1], self._draw_tasks(len(before) - 1)))
        return before[number]

    def _draw_tasks(self, number: int) -> Tensor:
        """The task of each sample of a round."""
        generator = chance(self.seed, self._epoch_begun, number)
        each = self.global_batch_size if self.sampling.grouped else 1
        draws = self._round_size // each
        chances = self.sampling.probabilities(self._scores_of_round(number))
        return torch.multinomial(chances, draws, replacement=True, generator=generator).repeat_interleave(
            each
        )

    def _scores_of_round(self, number: int) -> list[float]:
        if not self.sampling.by_loss:
            return self._scores
        before = max(number - 1, 0)
        if before >= len(self._loss_shares):
            raise UserError(
                f"sampling.score {self.sampling.score}: no losses of tasks were reported; train a "
                "VLMModule, which reports them, or take another score"
            )
        shares = self._read_loss_shares(before)
        return shares if self.sampling.score == "hard" else [1 / share for share in shares]

    def _read_loss_shares(self, number: int) -> list[float]:
        """The shares before the end of a round. The host waits for the device, once."""
        shares = self._loss_shares[number]
        if isinstance(shares, Tensor):
            shares = self._loss_shares[number] = shares.tolist()
        return shares

    def _draw_samples(self, number: int) -> Tensor:
        """The samples of a round: those of each task are the next ones of its passes."""
        return self._passes.deal(self._draw_tasks(number), self._drawn_before_round(number))
