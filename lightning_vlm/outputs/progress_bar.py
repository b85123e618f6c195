"""The progress bar of the command: Lightning's, with the right number of batches under `max_steps`."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override


class ProgressBar(RichProgressBar):
    """As Lightning's, which takes steps for batches under accumulation, counts a resumed epoch's batches
    but not those before, as in 8/3, and without `max_epochs` counts epochs as in 0/-2.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch_begins = False

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
