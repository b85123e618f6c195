"""Best, latest and periodic checkpoints and the decision to stop, in one place."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.checkpoint_folder import BEST, LATEST, CheckpointFolder, Kept, name_of
from lightning_vlm_callbacks.curves import need_matplotlib
from lightning_vlm_callbacks.exact_resume import (
    Position,
    capture,
    epoch_ended,
    go_on,
    mend_progress,
    set_random_state,
    unsure_loaders,
)
from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.run_history import RunHistory, gradient_norm
from lightning_vlm_callbacks.runs import logs_at, run_folder
from lightning_vlm_callbacks.stop_rule import Rule, Standing, decide
from lightning_vlm_callbacks.whole_steps import need_lightning

__all__ = ["EarlyStopCheckpoint"]


class EarlyStopCheckpoint(Checkpoint):
    """Keeps the best, the latest and periodic checkpoints, and stops when there is no more progress.

    One decision makes a checkpoint the best and starts the waiting anew, so that what is kept and when to
    stop can't disagree. In `dirpath` are `step-00000120.ckpt`, ..., the links `best.ckpt` and `latest.ckpt`,
    `history.csv` (losses, learning rates and norms of the gradient) and at the end `history.png`. Whenever
    the run is killed, `latest.ckpt` is whole.

    From our checkpoints a run goes on bit for bit as if it had never ended: they hold the random states of
    all ranks. Inside an epoch this needs loaders that know where they are (`state_dict`), such as torchdata's
    `StatefulDataLoader` or those of `VLMDataModule`; and validation at whole optimizer steps.

    `trainer.fit(ckpt_path="best")`, `test` and so on find the best one. "last" Lightning finds of its own
    ModelCheckpoint only: give the path of `latest.ckpt`.

    After the seed, 3.4.4, whose `SmartCheckpointer` never recovers from a first score that is NaN, and whose
    checkpoints lack random states.

    Args:
        monitor: The metric to judge by, after each validation, or at each epoch's end if there is no
            validation. None judges nothing: there is no best, and no early stop.
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
        history: Globs of the metrics in `history.csv`, beside the monitored one; learning rates and norms
            are there in any case. None writes none.
        picture: Draw `history.png` at the end.

    Raises:
        ModuleNotFoundError: `picture` without matplotlib.
        MisconfigurationException: A number that makes no sense, two of these callbacks with one folder, a
            metric that isn't there, or a checkpoint that can't be written (the older ones stay).

    Example::

        trainer = Trainer(callbacks=[EarlyStopCheckpoint("val/loss", patience=3, every_n_steps=500)])
        trainer.fit(model, data)
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
        history: Sequence[str] | None = ("*loss*",),
        picture: bool = True,
    ) -> None:
        super().__init__()
        if mode not in ("min", "max"):
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found mode {mode!r}; expected 'min' or 'max'"
            )
        if patience is not None and monitor is None:
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found patience {patience} without a metric to wait for; set monitor"
            )
        least = {"patience": 0, "min_delta": 0, "every_n_steps": 1, "every_n_epochs": 1, "keep_periodic": 0}
        for name, limit in least.items():
            value = locals()[name]
            if value is not None and value < limit:
                raise MisconfigurationException(
                    f"EarlyStopCheckpoint: found {name} {value}; expected at least {limit}"
                )
        if dirpath is not None and "://" in str(dirpath):
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found dirpath {dirpath}; expected a folder on a local or shared "
                "disk, where a "
                "file can be renamed and linked"
            )
        self.monitor = monitor
        self.rule = Rule(mode, min_delta, patience)
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.keep_periodic, self.dirpath = keep_periodic, dirpath
        self.history, self.picture = history, picture
        self._folder: CheckpointFolder | None = None
        self._reset()

    def _reset(self) -> None:
        self._standing, self._kept = Standing(), Kept()
        self._history = RunHistory([*(self.history or []), *([self.monitor] if self.monitor else [])])
        self._loaded: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None  # to be set when the next epoch begins
        self._position: Position | None = None  # while we save
        self._resumed = self._settled = False  # settled: other runs' files are out of the way
        self._numbers: dict[str, Any] = {}  # of the step under way
        self._step = self._stopped = 0
        self._best_due = self._periodic_due = self._to_judge = False

    # For Lightning and people

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.rule.mode)

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, of this run or of one before in `dirpath`; empty if there is none."""
        if self._folder is None:
            link = Path(self.dirpath or "", BEST)
            return str(link.resolve()) if self.dirpath and link.exists() else ""
        return str(self._folder.path / self._kept.best) if self._kept.best else ""

    @property
    def last_model_path(self) -> str:
        """The latest checkpoint of this run; empty if there is none."""
        return str(self._folder.path / self._kept.latest) if self._folder and self._kept.latest else ""

    @property
    def best_model_score(self) -> float | None:
        """The best score so far."""
        return self._standing.best

    # Begin

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        need_lightning("EarlyStopCheckpoint", trainer)
        if stage != TrainerFn.FITTING:
            return
        self._reset()
        folder = run_folder(trainer, self.dirpath or run_folder(trainer) / "checkpoints")
        self._folder = CheckpointFolder(folder)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            shared = isinstance(other, EarlyStopCheckpoint) and other is not self and other._folder
            if shared and shared.path == self._folder.path:
                raise MisconfigurationException(
                    f"found two EarlyStopCheckpoint with one folder, {shared.path}; give each its dirpath"
                )
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            raise MisconfigurationException(
                "EarlyStopCheckpoint: found AsyncCheckpointIO, which returns before a checkpoint is "
                "written, so that "
                "it can't be told when it is whole; leave it out of the Trainer's plugins"
            )
        if self.picture and self.history is not None:
            need_matplotlib("EarlyStopCheckpoint(picture=False)")

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        states = checkpoint["callbacks"]
        taken = {one.state_key for one in trainer.callbacks}  # type: ignore[attr-defined]
        ours = [one for one in states if one.startswith(f"{type(self).__qualname__}{{") and one not in taken]
        key = self.state_key if self.state_key in states else ours[0] if len(ours) == 1 else None
        self._loaded = None if key is None else states[key]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self._folder is not None
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self._folder.clear_unfinished()
        if self._loaded is not None:
            self._resume(trainer, self._loaded)
            self._loaded, self._resumed = None, True
        self._warn_unsure(trainer)

    def _resume(self, trainer: Trainer, state: dict[str, Any]) -> None:
        assert self._folder is not None
        files, periodic, best = state["kept"]
        self._kept = Kept(tuple(files), tuple(periodic), best)
        here = [one for one in self._kept.files if (self._folder.path / one).exists()]
        kept = self._kept.only(trainer.strategy.broadcast(here))
        same = (state["monitor"], state["mode"]) == (self.monitor, self.rule.mode)
        if same:
            self._standing = Standing(state["best"], state["waited"])
            if self._kept.best and not kept.best:
                rank_zero_warn(
                    f"EarlyStopCheckpoint: the best checkpoint so far, {self._kept.best}, isn't in "
                    f"{self._folder.path};"
                    f" its score {state['best']:g} still counts"
                )
        elif state["best"] is not None:
            rank_zero_warn(
                f"EarlyStopCheckpoint: the checkpoint was judged by {state['monitor']} ({state['mode']}), "
                "now it is "
                f"{self.monitor} ({self.rule.mode}); the best score so far, {state['best']:g}, can't be "
                "compared and "
                "is forgotten"
            )
            kept = kept._replace(best=None)
        self._kept = kept
        if self.history is not None and trainer.is_global_zero:
            self._history.load(self._folder.path / "history.csv", self._step)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: one.to(device) for name, one in state["metrics"].items()})
        self._history.add_old(trainer.callback_metrics)
        if len(state["ranks"]) != trainer.world_size:
            rank_zero_warn(
                f"EarlyStopCheckpoint: found a checkpoint of {len(state['ranks'])} processes, now there are "
                f"{trainer.world_size}; random states belong to one process each, so they are not restored"
            )
            return
        mine = state["ranks"][trainer.global_rank]
        go_on(trainer, mine, state["position"])
        if state["position"] == "epoch":
            self._random = mine["random"]
        else:
            set_random_state(mine["random"])

    def _warn_unsure(self, trainer: Trainer) -> None:
        inside = bool(self.every_n_steps) or (self.monitor and trainer.val_check_interval != 1.0)
        if inside and (unsure := unsure_loaders(trainer)):
            rank_zero_warn(
                "EarlyStopCheckpoint: checkpoints inside an epoch were asked for, but the training data "
                "come from "
                f"{unsure[0]}, which can't go on inside one exactly. Use torchdata.stateful_dataloader."
                "StatefulDataLoader or VLMDataModule, or save at the ends of epochs only"
            )

    # Steps

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        if self._is_logged(trainer, trainer.global_step + 1):
            self._numbers = dict(rates_in_force(trainer.optimizers))

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_logged(trainer, trainer.global_step + 1):
            number = trainer.optimizers.index(optimizer)
            name = "grad_norm" if len(trainer.optimizers) == 1 else f"grad_norm/{number}"
            if name in self._numbers:
                return  # LBFGS, or one like SAM, computes another gradient within the step
            if (norm := gradient_norm(optimizer)) is not None:
                self._numbers[name] = norm

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        before, self._step = self._step, trainer.global_step
        if self._step == before or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # in the middle of an accumulation window
        if self._is_logged(trainer, self._step):
            self._record(trainer, self._numbers)
        every = self.every_n_steps
        if every and self._step // every > before // every:
            self._periodic_due = True
        if self._periodic_due and not epoch_ended(trainer) and not _validation_follows(trainer):
            self._save(trainer, "batch")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._idle(trainer):
            return
        self._record(trainer, {})
        self._to_judge = True
        if not epoch_ended(trainer):
            self._judge(trainer)
            if self._best_due or self._periodic_due:
                self._save(trainer, "validation")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._idle(trainer):
            return
        self._record(trainer, {})
        if self._to_judge or not trainer.enable_validation:
            self._judge(trainer)
        every = self.every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0 and epoch_ended(trainer):
            self._periodic_due = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here is all done that belongs to the epoch before, such as the step of a plateau schedule.
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        elif (self._best_due or self._periodic_due) and not self._idle(trainer):
            self._save(trainer, "epoch")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._idle(trainer):
            return
        self._save(trainer, "epoch" if epoch_ended(trainer) else "stopped")
        if self.picture and self.history is not None and trainer.is_global_zero:
            assert self._folder is not None
            marks = {"best": self._kept.best, "stopped": self._stopped and self._kept.latest}
            steps = {mark: float(name[5:-5]) for mark, name in marks.items() if name}
            self._history.draw(self._folder.path / "history.png", self.monitor, steps)

    # State

    @override
    def state_dict(self) -> dict[str, Any]:
        files, periodic, best = self._kept
        return {
            "monitor": self.monitor,
            "mode": self.rule.mode,
            "best": self._standing.best,
            "waited": self._standing.waited,
            "kept": [list(files), list(periodic), best],
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Every rank comes here, also when another callback saves.
        state = checkpoint["callbacks"][self.state_key]
        state["position"] = self._position
        state["ranks"] = capture(trainer)
        state["metrics"] = {name: one.detach().cpu() for name, one in trainer.callback_metrics.items()}
        if self._position is not None:
            mend_progress(checkpoint, self._position)

    # How

    def _idle(self, trainer: Trainer) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return not fitting or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]

    def _is_logged(self, trainer: Trainer, step: int) -> bool:
        return self.history is not None and logs_at(trainer, step)

    def _record(self, trainer: Trainer, numbers: dict[str, Any]) -> None:
        metrics = trainer.callback_metrics  # on all ranks, for they may have to agree on it
        if self.history is not None and trainer.is_global_zero:
            self._history.add(trainer.global_step, trainer.current_epoch, numbers, metrics)

    def _judge(self, trainer: Trainer) -> None:
        """The decision, the same on all ranks, and what follows."""
        self._to_judge = False
        if self.monitor is None:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found no metric {self.monitor!r} after step {trainer.global_step}; "
                "there are: "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        score = metrics[self.monitor].detach().float()
        if trainer.world_size > 1:  # it may not have been logged with sync_dist
            score = trainer.strategy.reduce(score.clone().to(trainer.strategy.root_device), reduce_op="mean")
        decision = decide(self.rule, self._standing, float(score))
        self._standing = decision.standing
        self._best_due |= decision.is_best
        if trainer.strategy.reduce_boolean_decision(decision.should_stop, all=False):
            self._stopped = trainer.global_step
            trainer.should_stop = True
            rank_zero_info(
                f"EarlyStopCheckpoint stops at step {self._stopped}: {self.monitor}: {decision.reason}"
            )

    def _save(self, trainer: Trainer, position: Position) -> None:
        """Write a checkpoint, then let the links point at it, then delete what is no longer kept."""
        assert self._folder is not None
        name, before = name_of(trainer.global_step), self._kept
        new = name not in before.files
        self._kept = before.add(name, self._best_due, self._periodic_due)
        self._best_due = self._periodic_due = False
        try:
            if new:
                self._position = position
                self._write(trainer, self._folder.unfinished(name))
            self._publish(trainer, name if new else None)
        except BaseException:
            self._kept = before
            raise
        finally:
            self._position = None
        self._kept = self._kept.prune(self.keep_periodic)

    def _write(self, trainer: Trainer, file: Path) -> None:
        error: BaseException | None = None
        try:
            trainer.save_checkpoint(file)
        except (Exception, CheckpointException) as found:
            error = found
            trainer.strategy.barrier("Trainer.save_checkpoint")  # in which the others wait
        self._agree(trainer, error)

    def _publish(self, trainer: Trainer, name: str | None) -> None:
        """What has to be on the disk before `latest` says so comes first, and deleting last."""
        folder, kept, error = self._folder, self._kept, None
        assert folder is not None
        try:
            if trainer.is_global_zero:
                if not self._settled and (aside := folder.set_aside(kept.files, self._resumed)):
                    rank_zero_warn(f"EarlyStopCheckpoint: another run's checkpoints were moved to {aside}")
                if self.history is not None:
                    folder.write("history.csv", self._history.text())
                if name is not None:
                    folder.publish(name)
                folder.link(BEST, kept.best)
                folder.link(LATEST, kept.latest)
                folder.delete(set(kept.files).difference(kept.prune(self.keep_periodic).files))
        except OSError as found:
            error = found
        self._settled = True
        self._agree(trainer, error)

    def _agree(self, trainer: Trainer, error: BaseException | None) -> None:
        """Raise on all ranks if there was an error on any."""
        if trainer.strategy.reduce_boolean_decision(error is None, all=True):
            return
        assert self._folder is not None
        with suppress(OSError):
            if trainer.is_global_zero:
                self._folder.clear_unfinished()
        found = "another process failed" if error is None else f"{type(error).__name__}: {error}"
        raise MisconfigurationException(
            f"EarlyStopCheckpoint could not save step {trainer.global_step} in {self._folder.path}: "
            f"{found}. The "
            "checkpoints from before are whole, and latest.ckpt points at the last of them"
        ) from error


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates behind this batch. A run saved before would go on without it."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
