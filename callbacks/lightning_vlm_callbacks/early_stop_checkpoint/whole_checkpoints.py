"""A ModelCheckpoint whose files are whole, resume exactly, and are found again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import BEST, LATEST
from lightning_vlm_callbacks.early_stop_checkpoint.copies import CopiedState
from lightning_vlm_callbacks.early_stop_checkpoint.exact_resume import (
    Position,
    correct_progress,
    rank_state,
    resume_at,
    resume_split_otherwise,
    states_of_ranks,
    what_is_lost,
)
from lightning_vlm_callbacks.early_stop_checkpoint.interrupts import Interrupts
from lightning_vlm_callbacks.early_stop_checkpoint.judge import Judge
from lightning_vlm_callbacks.early_stop_checkpoint.own_buffers import give_own_buffers, own_buffers
from lightning_vlm_callbacks.early_stop_checkpoint.previous_runs import find_checkpoint
from lightning_vlm_callbacks.early_stop_checkpoint.run_files import RunFiles
from lightning_vlm_callbacks.random_states import set_random_state

__all__ = ["WholeCheckpoints"]


class WholeCheckpoints(ModelCheckpoint):
    """What is saved, and how a run resumes from it; a subclass decides when.

    Args:
        judge: Knows the best score so far.
        files: Writes the files.
        save_on_exit: Save when the run is interrupted.
        dirpath: The folder that the user chose.
        asynchronous: Write while training goes on, where the run isn't about to end.
    """

    def __init__(
        self, judge: Judge, files: RunFiles, save_on_exit: bool, dirpath: str | None, asynchronous: bool
    ) -> None:
        super().__init__(monitor=judge.monitor, mode=judge.rule.mode, save_last=True)
        self.dirpath = dirpath
        self._judge = judge
        self._files = files
        self.asynchronous = asynchronous
        self._copied = CopiedState()
        self._interrupts = Interrupts(save_on_exit, self._save, self._at, self._newest)
        link = Path(dirpath or "", BEST)
        self.best_model_path = str(link.resolve()) if dirpath and link.exists() else ""
        self._forget_fit()

    def _forget_fit(self) -> None:
        """Forget what belongs to one fit. The best so far and the files belong to all."""
        self._loaded: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None  # to be set when the next epoch begins
        self._position: Position | None = None  # while saving
        self._rewinding = False  # while the last whole step is saved during the next one
        self._best_due = False
        self._periodic_due = False

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    # State

    @override
    def state_dict(self) -> dict[str, Any]:
        files, periodic, best = self._files.kept
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "best": self._judge.standing.best,
            "waited": self._judge.standing.waited,
            "kept": [list(files), list(periodic), best],
            "folder": str(self._files.folder.path) if self._files.folder is not None else None,
        }

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Every rank comes here, also when another callback saves.
        if self._rewinding:
            position: Position | None = self._interrupts.last.position
            mine = self._interrupts.last.rewind(checkpoint)
        else:
            position = self._position
            mine = {**rank_state(trainer), "buffers": own_buffers(trainer, pl_module)}
        state = checkpoint["callbacks"][self.state_key]
        state["position"] = position
        state["ranks"] = states_of_ranks(trainer, mine)
        state["metrics"] = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
        if position is not None:
            correct_progress(checkpoint, position)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        states = checkpoint["callbacks"]
        self._loaded = states.get(self.state_key)
        if self._loaded is None:  # it may have been saved with another metric, which is part of the key
            taken = {other.state_key for other in trainer.callbacks}  # type: ignore[attr-defined]
            kind = f"{type(self).__qualname__}{{"
            others = [key for key in states if key.startswith(kind) and key not in taken]
            if len(others) == 1:
                self._loaded = states[others[0]]

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass  # `on_train_start` does it, when more is known

    def _resume(self, trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
        same_metric = self._judge.resume(state)
        self._files.resume(trainer, state, same_metric)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: value.to(device) for name, value in state["metrics"].items()})
        self._judge.add_old(trainer)
        if len(state["ranks"]) != trainer.world_size:
            for lost in what_is_lost(trainer, module, state["position"]):
                rank_zero_warn(
                    f"EarlyStopCheckpoint: found a checkpoint of {len(state['ranks'])} processes, now there "
                    f"are {trainer.world_size}; {lost}"
                )
            resume_split_otherwise(trainer, state["ranks"][0], state["position"])
            return
        mine = state["ranks"][trainer.global_rank]
        give_own_buffers(trainer.lightning_module, mine.get("buffers", {}))
        resume_at(trainer, mine, state["position"])
        if state["position"] == "epoch":
            self._random = mine["random"]
        else:
            set_random_state(mine["random"])

    # Save

    def _save(self, trainer: Trainer, position: Position | None, goes_on: bool = False) -> None:
        """Save the run as it is, or for None as it was after its last whole step.

        Args:
            trainer: All of its ranks must call this.
            position: Where it is.
            goes_on: Whether training goes on, so that it may be written in the background.
        """
        last_step = self._interrupts.last.step
        step = trainer.global_step if position is not None or last_step is None else last_step
        best, periodic = self._best_due, self._periodic_due
        self._best_due = False
        self._periodic_due = False
        try:
            with self._at(position):
                self._wait(trainer)
                if self.asynchronous and goes_on:
                    self._files.begin(trainer, step, best, periodic, self._copied.take)
                else:
                    self._files.save(trainer, step, best, periodic, self._write)
        except BaseException:
            self._interrupts.fail()
            raise
        if not self._files.is_writing:
            self._announce(trainer)

    def _wait(self, trainer: Trainer) -> None:
        """Wait for what is being written in the background; all ranks must call it."""
        try:
            was_writing = self._files.wait(trainer)
        except BaseException:
            self._interrupts.fail()
            raise
        if was_writing:
            self._announce(trainer)

    def _end_writing(self, trainer: Trainer) -> None:
        """Wait where ranks may not be together, because one of them has failed."""
        try:
            if self._files.wait(trainer, together=False):
                self._update_paths()
        except MisconfigurationException as error:  # the original exception matters more
            rank_zero_warn(str(error))
        self._files.close()
        self._copied.close()

    def _announce(self, trainer: Trainer) -> None:
        """Tell Lightning and its loggers of a checkpoint that is there now."""
        self._update_paths()
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    @contextmanager
    def _at(self, position: Position | None) -> Iterator[None]:
        """What is saved inside of it says where the run is, or for None is as it was after the last step."""
        self._position = position
        self._rewinding = position is None
        try:
            yield
        finally:
            self._position = None
            self._rewinding = False

    def _newest(self) -> str:
        return self.last_model_path

    def _write(self, trainer: Trainer, file: Path) -> None:
        trainer.save_checkpoint(file, weights_only=False)

    def _update_paths(self) -> None:
        """What Lightning and its loggers read of a ModelCheckpoint."""
        kept = self._files.kept
        self.best_model_path = self._files.path_of(kept.best)
        self.last_model_path = self._files.path_of(kept.latest)
        self.best_model_score = self._judge.standing.best  # type: ignore[assignment]
        self.current_score = self._judge.score  # type: ignore[assignment]
        self.best_k_models = {}
        if kept.best is not None and self.best_model_score is not None:
            self.best_k_models[self.best_model_path] = self.best_model_score

    def find_best(self, trainer: Trainer) -> str:
        """Look for the best checkpoint of earlier runs, for `ckpt_path="best"` in a new process.

        Lightning asks for `best_model_path` without saying which Trainer it is for, so that without `dirpath`
        this must be called first; `lightning-vlm` does.

        Args:
            trainer: Its logger says where to look, if this has no `dirpath`.

        Returns:
            The path, which is `best_model_path` from now on; empty if there is none.
        """
        if not self.best_model_path:
            found = find_checkpoint(trainer, self.dirpath, BEST)
            self.best_model_path = "" if found is None else str(found)
        return self.best_model_path

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Where Lightning looks for `ckpt_path="last"`."""
        if self.last_model_path:
            return {self.last_model_path}
        found = find_checkpoint(trainer, self.dirpath, LATEST)
        return set() if found is None else {str(found)}
