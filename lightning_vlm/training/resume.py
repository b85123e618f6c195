"""Where a resumed run begins: at a whole optimizer step, however the checkpoint was saved."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor

from lightning_vlm.data.batch.loader import ResumableLoader

WINDOW = "window"
"""The key under which a checkpoint says what was already done in the window that it goes back from."""


class AccumulationWindow:
    """The micro-batches of the optimizer step under way, and what a checkpoint written among them must say.

    Gradients, sums of losses and what else callbacks collect during a step are in no checkpoint. A file
    that is written inside a window therefore counts batches as they were counted when the window began, so
    that the resumed run repeats the window's micro-batches. Weights, optimizer and callbacks are as they were
    then, since they change at the window's end. To keep the gradients instead would double a checkpoint of
    full fine-tuning, need those of every rank, and leave out what callbacks have collected.

    It doesn't matter what saves: a ModelCheckpoint by steps or by time, a signal handler in the middle of a
    forward, or a validation inside a window. That validation isn't run again by the resumed run.
    """

    def __init__(self) -> None:
        self.stepping = False
        """Whether the optimizer is changing weights right now."""
        self._progress: dict[str, Any] | None = None
        self._buffers: dict[str, Tensor] = {}
        self._validated: int | None = None
        self._already_validated: tuple[int, int] | None = None

    def start_run(self, trainer: Trainer) -> None:
        """Begin a fit, perhaps a resumed one."""
        self.stepping = False
        self._progress = self._validated = None
        for loader in _resumable_loaders(trainer):
            loader.count_steps()

    def start_batch(self, trainer: Trainer, buffers: Mapping[str, Tensor]) -> None:
        """Remember the progress of the run if this batch is the first of its window.

        Args:
            trainer: That trains.
            buffers: Those that every forward changes, such as the statistics of a norm.
        """
        if self._progress is not None:
            return
        self._buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        self._progress = trainer.fit_loop.epoch_loop.state_dict()
        batches = self._progress["batch_progress"]
        batches["is_last_batch"] = False
        for counts in (batches["total"], batches["current"]):
            counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]

    def end_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Leave out the validation that follows this batch if it was run before the checkpoint was saved."""
        if self._already_validated == (trainer.current_epoch, batch_idx):
            trainer.fit_loop.epoch_loop._skip_next_val = True
            self._already_validated = None

    def end_validation(self, trainer: Trainer) -> None:
        """Remember that the validation inside the window is done, before callbacks save."""
        if self._progress is not None:
            self._validated = trainer.fit_loop.epoch_loop.batch_idx

    def end_step(self, trainer: Trainer, batch_idx: int) -> None:
        """End the window, when weights and all that follows them have changed."""
        self.stepping = False
        self._progress = self._validated = None
        self._buffers = {}
        for loader in _resumable_loaders(trainer):
            loader.finish(batch_idx + 1)

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
        """Let a checkpoint count epochs and batches as at the end of the last whole step.

        Args:
            trainer: That saves.
            checkpoint: As Lightning has made it; its counts are changed.

        Returns:
            What `load` needs, or None.
        """
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        uncounted = self._progress is None and batch.processed < batch.started
        if self.stepping or uncounted:
            rank_zero_warn(
                "this checkpoint was saved while an optimizer step was changing the weights, so a run can't "
                "be resumed from it exactly; save in on_train_batch_end or later"
            )
        if self._progress is None:
            current = epochs["current"]
            if current["ready"] > current["started"]:
                _between_epochs(epochs)
            # A tuner saves before the first epoch, when there is no epoch to continue.
            elif 0 < current["ready"] == current["processed"] and not _epoch_ended(trainer):
                _inside_epoch(epochs)
            return None
        for name, value in self._progress.items():
            loops[f"epoch_loop.{name}"] = deepcopy(value)
        if self._progress["batch_progress"]["current"]["completed"] == 0:
            _between_epochs(epochs)
        elif not _resumable_loaders(trainer):
            rank_zero_warn(
                "this checkpoint was saved inside an accumulation window, and the training data come from a "
                "loader that can't go back to the window's start; a run resumed from it leaves out some "
                "batches. Use a VLMDataModule, or save at the end of an optimizer step"
            )
        if self._validated is None:
            return None
        return {"epoch": trainer.current_epoch, "validated": self._validated}

    def buffers(self, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Buffers for a checkpoint: inside a window as they were when it began.

        Args:
            now: Those of the module.
        """
        return {name: self._buffers.get(name, buffer) for name, buffer in now.items()}

    def load(self, state: dict[str, Any] | None) -> None:
        """From a checkpoint, what `save` returned."""
        self._already_validated = None if state is None else (state["epoch"], state["validated"])

    def convert(self, batch_idx: Callable[[int], int | None]) -> None:
        """Look for the end of the validated batch among batches that are split in another way.

        Args:
            batch_idx: The batch that ends where another ended; None if none does.
        """
        if self._already_validated is not None:
            epoch, validated = self._already_validated
            now = batch_idx(validated)
            self._already_validated = None if now is None else (epoch, now)


def _resumable_loaders(trainer: Trainer) -> list[ResumableLoader]:
    loaders = trainer.train_dataloader
    if isinstance(loaders, ResumableLoader):
        return [loaders]
    found = [] if loaders is None else CombinedLoader(loaders).flattened
    return [loader for loader in found if isinstance(loader, ResumableLoader)]


def _epoch_ended(trainer: Trainer) -> bool:
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return batches.is_last_batch or batches.current.ready == trainer.num_training_batches


def _between_epochs(epochs: dict[str, Any]) -> None:
    """Count an epoch that has no whole step yet as not begun."""
    for counts in (epochs["total"], epochs["current"]):
        counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]


def _inside_epoch(epochs: dict[str, Any]) -> None:
    """Count an epoch that was stopped before its last batch as unfinished; Lightning doesn't."""
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["ready"] - 1
