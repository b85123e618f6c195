"""Best, latest and periodic checkpoints and the decision to stop, in one place."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.checkpoint_files import use_whole_files
from lightning_vlm_callbacks.early_stop_checkpoint.exact_resume import (
    Position,
    epoch_ended,
    unsure_loaders,
)
from lightning_vlm_callbacks.early_stop_checkpoint.judge import Judge
from lightning_vlm_callbacks.early_stop_checkpoint.last_step import is_training, position_after_batch
from lightning_vlm_callbacks.early_stop_checkpoint.options import check_numbers, check_options, check_strategy
from lightning_vlm_callbacks.early_stop_checkpoint.run_files import RunFiles
from lightning_vlm_callbacks.early_stop_checkpoint.whole_checkpoints import WholeCheckpoints
from lightning_vlm_callbacks.random_states import set_random_state
from lightning_vlm_callbacks.requirements import require_lightning
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import run_folder
from lightning_vlm_callbacks.sharded_checkpoints import use_sharded_checkpoints
from lightning_vlm_callbacks.stop_rule import Decision, Rule

__all__ = ["EarlyStopCheckpoint"]


class EarlyStopCheckpoint(WholeCheckpoints):
    """Keeps the best, the latest and periodic checkpoints, and stops when there is no more progress.

    One decision both makes a checkpoint the best and resets the patience, so that the best checkpoint and
    the early stop can't disagree. In `dirpath` are `step-00000120.ckpt`, ... and the links `best.ckpt` and
    `latest.ckpt`, which is complete even if the run is killed.

    A run resumed from our checkpoints continues bit for bit as if it had never stopped: they hold the random
    states of all ranks. Inside an epoch this needs loaders that save their position (`state_dict`), such as
    torchdata's `StatefulDataLoader` or those of `VLMDataModule`; and validation at whole optimizer steps.

    A run that is interrupted by Ctrl-C, SIGTERM or an exception is saved as it was after its last whole
    optimizer step; with several processes a signal waits for the end of a step or a validation, and an
    exception, which may have struck only one of them, saves nothing.

    `ckpt_path="last"` resumes from the latest checkpoint, also in a new process: the one in `dirpath`, else
    the one of the run's folder where the logger has a fixed version or id, else the newest among the earlier
    runs of the logger's name. If there is none yet, the run starts from scratch, so that a SLURM job can
    always give it. `ckpt_path="best"` finds the best, in a new process only with `dirpath`.

    A second fit with the same callback keeps the best so far, its file and the patience used up.

    It derives from ModelCheckpoint so that Lightning's loggers, such as `WandbLogger(log_model=True)`, treat
    its files as checkpoints. It does all the work itself.

    Args:
        monitor: The metric to judge by, after each validation, or at each epoch's end if no validation comes.
            With None there is no best checkpoint and no early stop.
        mode: Whether less or more of it is better.
        patience: Stop when this many scores in a row aren't better; None never stops.
        min_delta: How much better a score must be.
        every_n_steps: Save each time that this many optimizer steps have been made.
        every_n_epochs: Save each time that this many epochs have ended. The best is saved in any case, and
            the latest when the run ends.
        keep_periodic: How many of those saved by steps or epochs are kept; None keeps all.
        dirpath: A folder on a local or shared disk; None is `checkpoints` in the run's folder, which
            is `save_dir/name/version` of the logger, or `default_root_dir` without one. What another run has
            left there is moved to `previous-1` and so on; a run that still writes there is an error.
        strict: Whether it is an error if the metric isn't there when it is judged. False waits for the next
            time, for a metric that only some validations have.
        save_on_exit: Save when the run is interrupted.
        asynchronous: Training waits only until the state is copied to the CPU's memory, and goes on while the
            copy is written: one at a time. What fails meanwhile is raised after the next step. The last
            checkpoint of a run, and what an interruption saves, are waited for.

    Raises:
        MisconfigurationException: A number that makes no sense, two of these callbacks with one folder, a
            folder that can't be written into or that another run writes into, a metric that isn't there, or
            a checkpoint that can't be written (the older ones stay).

    Example::

        trainer = Trainer(callbacks=[EarlyStopCheckpoint("val/loss", patience=3, every_n_steps=500)])
        trainer.fit(model, data, ckpt_path="last")
        trainer.test(ckpt_path="best")
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        patience: int | None = None,
        min_delta: float = 0.0,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        keep_periodic: int | None = 1,
        dirpath: str | None = None,
        strict: bool = True,
        save_on_exit: bool = True,
        asynchronous: bool = False,
    ) -> None:
        check_numbers(1, every_n_steps=every_n_steps, every_n_epochs=every_n_epochs)
        check_numbers(0, patience=patience, min_delta=min_delta, keep_periodic=keep_periodic)
        check_options(monitor, mode, patience, dirpath)
        judge = Judge(monitor, Rule(mode, min_delta, patience), strict)
        super().__init__(judge, RunFiles(keep_periodic), save_on_exit, dirpath, asynchronous)
        self.every_n_steps = every_n_steps
        self._every_n_epochs = every_n_epochs  # type: ignore[assignment]
        self._step = 0

    # Begin

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_lightning("EarlyStopCheckpoint", trainer)
        use_sharded_checkpoints(trainer)
        use_whole_files(trainer)
        if stage != TrainerFn.FITTING:
            return
        self._forget_fit()
        check_strategy(trainer, self.asynchronous)
        folder = run_folder(trainer, self.dirpath or run_folder(trainer) / "checkpoints")
        self._refuse_shared_folder(trainer, folder)
        self._files.open(folder, trainer.is_global_zero)

    def _refuse_shared_folder(self, trainer: Trainer, folder: Path) -> None:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(other, EarlyStopCheckpoint) or other is self:
                continue
            theirs = other._files.folder
            if theirs is not None and theirs.path == folder:
                raise MisconfigurationException(
                    f"found two EarlyStopCheckpoint with one folder, {folder}; give each its dirpath"
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._step = trainer.global_step
        if self._loaded is None:
            self._files.start(trainer)
        else:
            self._resume(trainer, pl_module, self._loaded)
            self._loaded = None
        self._update_paths()
        self._judge.on_train_start(trainer)
        self._warn_at_start(trainer)
        self._interrupts.start(trainer, pl_module)

    def _warn_at_start(self, trainer: Trainer) -> None:
        option = "EarlyStopCheckpoint: every_n_steps"
        every = self.every_n_steps
        warn_if_beyond(trainer, option, every, "it adds nothing to the checkpoint at the run's end")
        unsure = unsure_loaders(trainer)
        saves_inside = bool(every) or (self.monitor and trainer.val_check_interval != 1.0)
        if unsure and saves_inside:
            rank_zero_warn(
                "EarlyStopCheckpoint: checkpoints inside an epoch were asked for, but the training data "
                f"come from {unsure[0]}, which can't resume inside one exactly. Use torchdata."
                "stateful_dataloader.StatefulDataLoader or VLMDataModule, or save at the ends of epochs only"
            )

    # Steps

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._interrupts.last.on_train_batch_start()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._interrupts.last.on_before_optimizer_step()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        before = self._step
        self._step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._step == before:  # in the middle of an accumulation window
            if trainer.world_size == 1:
                self._interrupts.leave_if_asked(trainer, None)
            return
        if self._files.is_written(trainer):
            self._wait(trainer)
        every = self.every_n_steps
        if every and self._step // every > before // every:
            self._periodic_due = True
        self._end_step(trainer, pl_module, position_after_batch(trainer))

    def _end_step(self, trainer: Trainer, pl_module: LightningModule, position: Position) -> None:
        self._interrupts.keep(trainer, pl_module, position)
        if self._periodic_due and position == "batch":
            self._save(trainer, "batch", goes_on=True)
        if position != "epoch":  # whose end is near
            self._interrupts.leave_if_asked(trainer, position)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        # Ranks may validate different numbers of batches, so they can't agree here.
        if is_training(trainer) and trainer.world_size == 1:
            self._interrupts.leave_if_asked(trainer, None)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_training(trainer):
            return
        self._judge.due = True
        self._interrupts.last.on_validation_end(trainer)
        if not epoch_ended(trainer):
            self._follow(trainer, self._judge.judge(trainer))
            if self._best_due or self._periodic_due:
                self._save(trainer, "validation", goes_on=True)
            self._interrupts.leave_if_asked(trainer, "validation")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_training(trainer):
            return
        self._interrupts.last.on_train_epoch_end(trainer)
        self._follow(trainer, self._judge.on_train_epoch_end(trainer))
        every = self._every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0 and epoch_ended(trainer):
            self._periodic_due = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here the previous epoch is complete, including the step of a plateau schedule.
        if not is_training(trainer):
            return
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        elif self._best_due or self._periodic_due:
            self._save(trainer, "epoch", goes_on=True)
        self._interrupts.keep(trainer, pl_module, "epoch")
        self._interrupts.leave_if_asked(trainer, "epoch")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_training(trainer):
            return
        position: Position = "epoch" if epoch_ended(trainer) else "stopped"
        self._save(trainer, position)
        self._judge.on_train_end(trainer)
        self._interrupts.leave_if_asked(trainer, position)
        self._interrupts.end()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if is_training(trainer):
            self._end_writing(trainer)
            self._interrupts.on_exception(trainer, pl_module, exception)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end_writing(trainer)
        self._interrupts.end()

    def _follow(self, trainer: Trainer, decision: Decision | None) -> None:
        """Do what follows from a decision, on all ranks."""
        if decision is None:
            return
        self._best_due |= decision.is_best
        if trainer.strategy.reduce_boolean_decision(decision.should_stop, all=False):
            trainer.should_stop = True
            rank_zero_info(
                f"EarlyStopCheckpoint stops at step {trainer.global_step}: {self.monitor}: {decision.reason}"
            )
            record_event(trainer, "stopped", f"{self.monitor}: {decision.reason}")
