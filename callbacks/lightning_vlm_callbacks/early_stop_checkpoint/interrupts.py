"""A run that is interrupted is saved as it was after its last whole optimizer step."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vlm_callbacks.early_stop_checkpoint.exact_resume import Position, unsure_loaders
from lightning_vlm_callbacks.early_stop_checkpoint.exit_signals import ExitSignals
from lightning_vlm_callbacks.early_stop_checkpoint.last_step import LastStep

__all__ = ["Interrupts"]


class Interrupts:
    """Decides whether a run that is interrupted can be saved, and how.

    Args:
        enabled: Whether anything is to be saved then.
        save: Saves the run as it is now, at a position, or for None as it was after its last whole step.
        at: Lets everything else that is saved inside of it say the same.
        newest: The path of the newest checkpoint; empty if there is none.
    """

    def __init__(
        self,
        enabled: bool,
        save: Callable[[Trainer, Position | None], None],
        at: Callable[[Position | None], AbstractContextManager[None]],
        newest: Callable[[], str],
    ) -> None:
        self.enabled = enabled
        self._save = save
        self._at = at
        self._newest = newest
        self.last = LastStep()
        self._signals = ExitSignals()
        self._first = 0
        self._done = False

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Called when training begins."""
        self.last = LastStep()
        self._first = trainer.global_step
        self._done = False
        if self.enabled:
            self._signals.install(trainer)
            self.last.find_buffers(module)

    def end(self) -> None:
        """Called when training ends in any way."""
        self._signals.remove()

    def keep(self, trainer: Trainer, module: LightningModule, position: Position) -> None:
        """Called after each whole step, and when an epoch begins.

        Several processes don't need it: they are saved only where they are whole.
        """
        self.last.stepping = False
        if self.enabled and trainer.world_size == 1:
            self.last.take(trainer, module, position)

    def leave_if_asked(self, trainer: Trainer, position: Position | None) -> None:
        """If a signal was caught, save the run and let the signal end it.

        Args:
            trainer: All of its ranks must ask, at places where they are together.
            position: Where the run is whole; None inside of a step or a validation.
        """
        number = self._signals.caught(trainer) if self.enabled else None
        if number is None:
            return
        if trainer.global_step > self._first:
            self._save(trainer, position)
            self._say(trainer, signal.Signals(number).name)
        self._done = True
        with self._at(position):  # because Lightning's handler saves too
            self._signals.leave(number)
        self._done = False  # SLURM has been asked to requeue the job, and ends it later

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Save what was whole before an exception."""
        caught = self._signals.remove()
        is_second_interrupt = caught == signal.SIGINT and isinstance(exception, KeyboardInterrupt)
        if self._done or is_second_interrupt or not self.enabled or trainer.global_step == self._first:
            return
        name = type(exception).__name__
        if trainer.world_size > 1:
            rank_zero_warn(
                f"EarlyStopCheckpoint: nothing was saved for {name}, which may have struck one process only; "
                f"{self._what_there_is()}"
            )
            return
        self.last.complete(trainer, module)
        if self.last.stepping:
            rank_zero_warn(
                f"EarlyStopCheckpoint: {name} struck in the middle of an optimizer step, after which weights "
                "can't be saved; latest.ckpt is the last whole checkpoint"
            )
        elif self.last.step is not None and self.last.step > self._first:
            self._save_last(trainer, name)

    def _save_last(self, trainer: Trainer, why: str) -> None:
        try:
            self._save(trainer, None)
            self._say(trainer, why)
        except MisconfigurationException as error:  # the original exception matters more
            rank_zero_warn(str(error))

    def _what_there_is(self) -> str:
        newest = self._newest()
        if not newest:
            return "no checkpoint was saved before"
        return f'the newest whole checkpoint is {newest}; resume with ckpt_path="last"'

    def fail(self) -> None:
        """Save nothing more, because saving has failed."""
        self._done = True

    def _say(self, trainer: Trainer, why: str) -> None:
        text = f"EarlyStopCheckpoint: saved step {self.last.step or trainer.global_step} for {why}; resume "
        text += 'with ckpt_path="last"'
        unsure = unsure_loaders(trainer)
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if unsure and batches < trainer.num_training_batches:
            text += f", though {unsure[0]} can't resume exactly inside an epoch"
        rank_zero_info(text)
