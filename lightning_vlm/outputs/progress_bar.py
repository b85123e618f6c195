"""The progress bar of the command: Lightning's, with the right number of batches under `max_steps`."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override


class TimeLeft:
    """How long a run will still take, by the steps that it has made; validations count as they come.

    >>> left = TimeLeft()
    >>> [left.after(step, 10, now) for step, now in ((0, 0.0), (1, 5.0), (2, 6.0), (4, 8.0))]
    [None, None, 8.0, 6.0]
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def after(self, step: int, steps: int, now: float) -> float | None:
        """Seconds until the last step; None until two steps can be compared. The first one is slower.

        Args:
            step: Steps made.
            steps: Of the whole run.
            now: Seconds of a clock.
        """
        if self._first is None:
            if step > 0:
                self._first = (step, now)
            return None
        made = step - self._first[0]
        return (now - self._first[1]) / made * (steps - step) if made > 0 else None


class ProgressBar(RichProgressBar):
    """As Lightning's, which takes steps for batches under accumulation, counts a resumed epoch's batches
    but not those before, as in 8/3, and without `max_epochs` counts epochs as in 0/-2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch_begins = False
        self._left = TimeLeft()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._left = TimeLeft()
        super().on_train_start(trainer, pl_module)

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """As Lightning's, but for the logger's version: when the run will be over comes first, where the bar
        shows an epoch of several.
        """
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        steps = getattr(getattr(pl_module, "steps", None), "total", 0)
        batches = trainer.num_training_batches
        if steps and batches and steps * trainer.accumulate_grad_batches > batches:
            left = self._left.after(trainer.global_step, steps, time.monotonic())
            if left is not None:
                return {"left": str(timedelta(seconds=round(left))), **metrics}
        return metrics

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_begins = True  # the loop's count is still of the epoch before
        super().on_train_epoch_start(trainer, pl_module)
        self._epoch_begins = False

    @property
    @override
    def total_train_batches(self) -> int | float:
        """Batches of the epoch until its end or that of the run."""
        trainer = self.trainer
        batches: int | float = trainer.num_training_batches
        if trainer.max_steps < 0:
            return batches
        of_epoch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        done = 0 if self._epoch_begins else of_epoch.processed
        window = trainer.accumulate_grad_batches
        left = (trainer.max_steps - trainer.global_step) * window - done % window
        return min(batches, done + left)

    def _get_train_description(self, current_epoch: int) -> str:
        """Lightning's name for this; without a last epoch only the one that runs is said."""
        if self.trainer.max_epochs not in (None, -1):
            return super()._get_train_description(current_epoch)
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))
