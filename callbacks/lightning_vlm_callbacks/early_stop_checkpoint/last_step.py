"""What is needed to save the last whole optimizer step later, in the middle of the next one."""

from copy import deepcopy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_vlm_callbacks.early_stop_checkpoint.exact_resume import Position, epoch_ended, rank_state

__all__ = ["LastStep", "is_training", "position_after_batch"]


class LastStep:
    """The counters, random states, loader positions and buffers as they were after the last whole step.

    Weights and optimizer states aren't copied: they don't change before the next optimizer step. So a run
    that is interrupted in the middle of a forward, of an accumulation window or of a validation is saved as
    it was after its last whole step, and what it did since then is done again when it is resumed.

    The callback that owns it calls its methods from the hooks of the same names.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """The step that can be saved; None if there is none yet, or if its weights have been changed."""
        self.position: Position = "batch"
        self.stepping = False
        """Whether the optimizer may be changing weights."""
        self._rank: dict[str, Any] = {}
        self._loops: dict[str, Any] = {}
        self._epoch = 0
        self._buffers: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[Tensor, int]] = {}
        """Each buffer with the number that torch counts up when it is changed."""
        self._owners: list[tuple[str, nn.Module]] = []

    def take(self, trainer: Trainer, module: LightningModule, position: Position) -> None:
        """Called after a whole step, or when an epoch begins."""
        self.step = trainer.global_step
        self.position = position
        self.stepping = False
        self._rank = rank_state(trainer)
        self._loops = trainer.fit_loop.state_dict()
        self._epoch = trainer.current_epoch
        if position == "epoch":
            self.find_buffers(module)
        else:
            self._keep_buffers()

    def find_buffers(self, module: LightningModule) -> None:
        """Look for all buffers, and see which have been changed since; called before the first step too.

        Walking over a large model takes longer than all else here, so it isn't done after each step.
        """
        self._owners = [(name, owner) for name, owner in module.named_modules() if owner._buffers]
        self._keep_buffers()

    def _keep_buffers(self) -> None:
        """Copy the buffers that training changes.

        The statistics of norms are always copied, because their kernels change them without a trace.
        """
        for place, owner in self._owners:
            is_norm = isinstance(owner, _NormBase)
            for name, buffer in owner.named_buffers(place, recurse=False):
                before, version = self._versions.get(name, (buffer, buffer._version))
                changed = before is not buffer or version != buffer._version
                if is_norm or changed or name in self._buffers:
                    self._buffers[name] = buffer.detach().clone()
                self._versions[name] = (buffer, buffer._version)

    def on_before_optimizer_step(self) -> None:
        self.stepping = True

    def on_train_batch_start(self) -> None:
        if self.position != "epoch":
            self.position = "between"

    def on_validation_end(self, trainer: Trainer) -> None:
        if self.position == "validating":
            self.position = "epoch" if epoch_ended(trainer) else "validation"
            self._rank = rank_state(trainer)

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        if epoch_ended(trainer):
            self.position = "epoch"
            self._rank = rank_state(trainer)

    def complete(self, trainer: Trainer, module: LightningModule) -> None:
        """Take the step that has just been made, if another callback failed after it."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if self.stepping and trainer.global_step != self.step and batches.processed == batches.ready:
            self.take(trainer, module, position_after_batch(trainer))

    def rewind(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Let a checkpoint that is being written say what was true then.

        Returns:
            What `rank_state` gave on this rank.
        """
        loops = deepcopy(self._loops)
        checkpoint["loops"]["fit_loop"] = loops
        checkpoint["epoch"] = self._epoch
        checkpoint["global_step"] = self.step
        for name, buffer in self._buffers.items():
            if name in checkpoint["state_dict"]:
                checkpoint["state_dict"][name] = buffer
        if self.position == "epoch" and loops["epoch_loop.batch_progress"]["is_last_batch"]:
            _end_epoch(loops)
        return self._rank


def _end_epoch(loops: dict[str, Any]) -> None:
    """Count the epoch under way, all of whose batches have been trained and validated, as ended."""
    epochs = loops["epoch_progress"]
    now = epochs["current"]
    if now["started"] < now["ready"] or now["completed"] == now["ready"]:
        return  # the next one is about to begin
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    for counts in (epochs["total"], epochs["current"]):
        counts["processed"] = counts["completed"] = counts["ready"]


def position_after_batch(trainer: Trainer) -> Position:
    """Where a run is when a whole step has been made and nothing that follows it."""
    loop = trainer.fit_loop
    if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
        return "validating"
    return "epoch" if epoch_ended(trainer) else "batch"


def is_training(trainer: Trainer) -> bool:
    """Whether a fit is under way that writes files."""
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return fitting and not trainer.fast_dev_run  # type: ignore[attr-defined]
