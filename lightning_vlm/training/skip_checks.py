"""Stops or warns when a run or an evaluation has too few samples left to learn from or to score."""

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.skipped import (
    JUDGE_SKIPPED_AFTER,
    JUDGE_WEIGHTS_AFTER,
    WORTH_REPORTING,
    SampleCounts,
)
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError


class TrainingSkipCheck(Callback):
    """Counts what became of the training samples, and stops a fit in which nearly all are skipped."""

    def __init__(self) -> None:
        self.start_fit()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start_fit()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        targets = pl_module.targets(batch)
        self.add(batch, len(targets.positions), batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end_epoch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end_fit(trainer)

    def start_fit(self) -> None:
        """Begin to count."""
        self._of_epoch = SampleCounts()
        self._of_fit = SampleCounts()
        self._epoch_is_complete = False
        self._looked_ahead = False
        self._check_at: float = JUDGE_SKIPPED_AFTER

    def start_stage(self) -> None:
        """Judge data again that are others from now on."""
        self._looked_ahead = False
        self._check_at = JUDGE_SKIPPED_AFTER

    def add(self, batch: Batch, targets: int, batch_idx: int) -> None:
        """Count a batch.

        Args:
            batch: Any training batch.
            targets: How many of its tokens have weight.
            batch_idx: Its place in the epoch.
        """
        if batch_idx == 0:
            self._of_epoch = SampleCounts()
            self._epoch_is_complete = True  # a resumed epoch isn't
        self._of_epoch += SampleCounts.of_batch(batch, targets)

    def end_step(
        self,
        trainer: Trainer,
        batch_idx: int,
        step_was_empty: bool,
        find_targets: Callable[[Batch], Targets],
    ) -> None:
        """Stop all ranks if nearly all samples of this epoch were skipped, on all ranks together.

        That is checked at the first step without a target, after `JUDGE_SKIPPED_AFTER` samples, after
        `JUDGE_WEIGHTS_AFTER` samples, and at the epoch's end.

        Args:
            trainer: That runs the fit.
            batch_idx: The last batch of the step.
            step_was_empty: Whether the step had no target on any rank.
            find_targets: What is learned from a batch, for samples that are still to come.

        Raises:
            UserError: There is nothing, or nearly nothing, to learn from.
        """
        loader = trainer.train_dataloader
        batches = batch_idx + 1
        if isinstance(loader, ResumableLoader):
            samples = loader.samples_of(batches)
        else:
            samples = batches * trainer.world_size
        first_empty = step_was_empty and not self._looked_ahead
        if not (first_empty or trainer.is_last_batch or samples >= self._check_at):
            return
        if samples >= self._check_at:
            self._check_at = JUDGE_WEIGHTS_AFTER if samples < JUDGE_WEIGHTS_AFTER else math.inf
        problem = self._problem(trainer, first_empty, find_targets)
        if problem:
            raise UserError(f"training data: {problem}")

    def _problem(
        self, trainer: Trainer, first_empty: bool, find_targets: Callable[[Batch], Targets]
    ) -> str | None:
        data = _data_of(trainer)
        limit = _max_length(trainer)
        complete = self._epoch_is_complete and trainer.is_last_batch
        problem = self._of_epoch.over_ranks().problem(limit, complete)
        if complete or not (problem or first_empty) or not isinstance(data, VLMDataModule):
            return problem
        # The first samples of a sorted file say little about the others.
        self._looked_ahead = True
        rendered = data.rendered("train", learn=True, prompts=False)
        ahead = rendered.look_ahead(JUDGE_SKIPPED_AFTER, find_targets)
        are_all = ahead.samples == len(data.samples("train"))
        return ahead.problem(limit, complete=bool(problem) or are_all)

    def end_epoch(self) -> None:
        """Add the epoch to the fit's counts. Every rank must call it."""
        self._of_fit += self._of_epoch.over_ranks()

    def end_fit(self, trainer: Trainer) -> None:
        """Say what was skipped if that is worth a line."""
        counts = self._of_fit
        if counts.share >= WORTH_REPORTING:
            rank_zero_warn(
                f"Of {counts.samples:,} training samples {counts.skipped:,} ({counts.share:.0%}) were "
                f"skipped: {counts.reasons(_max_length(trainer))}"
            )


class EvaluationSkipCheck:
    """Counts what became of the samples of a validation or test, to say why nothing could be scored."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin to count."""
        self._counts = SampleCounts()

    def add(self, batch: Batch, targets: int) -> None:
        """Count a batch, and how many of its tokens have weight."""
        self._counts += SampleCounts.of_batch(batch, targets)

    def warn_of_no_loss(self, trainer: Trainer, stage: str) -> None:
        """Say why the stage has no loss. Every rank must call it."""
        problem = self._counts.over_ranks().problem(_max_length(trainer))
        rank_zero_warn(f"{stage}/loss isn't logged, for nothing could be scored: {problem or 'no samples'}")


def _data_of(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _max_length(trainer: Trainer) -> int | None:
    return getattr(_data_of(trainer), "max_length", None)
