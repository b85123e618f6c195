"""The checkpoints of a run: what is written when, and what all ranks must agree on."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException

from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import (
    BEST,
    LATEST,
    CheckpointFolder,
    Kept,
    name_of,
    step_of,
)
from lightning_vlm_callbacks.early_stop_checkpoint.previous_runs import JOB, slurm_job

__all__ = ["RunFiles"]


class RunFiles:
    """What a run has written.

    Args:
        keep_periodic: How many periodic checkpoints are kept; None keeps all.
        dirpath: The folder that the user chose.

    Raises:
        MisconfigurationException: Numbers that make no sense, or a folder that isn't on a disk.
    """

    def __init__(self, keep_periodic: int | None, dirpath: str | None) -> None:
        check_numbers(0, keep_periodic=keep_periodic)
        if dirpath is not None and "://" in str(dirpath):
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found dirpath {dirpath}; expected a folder on a local or shared disk, "
                "where a file can be renamed and linked"
            )
        self._keep_periodic = keep_periodic
        self.folder: CheckpointFolder | None = None
        self.kept = Kept()
        self._earlier: frozenset[str] = frozenset()
        """Names given in an earlier fit whose steps were counted from 0 too."""
        self._continues = False
        """Whether the links in the folder are this run's."""
        self._settled = False
        """Whether other runs' files are out of the way."""

    def path_of(self, name: str | None) -> str:
        """The path of a checkpoint; empty if there is none."""
        return str(self.folder.path / name) if self.folder is not None and name else ""

    # Begin

    def open(self, folder: Path, is_global_zero: bool) -> None:
        """Use a folder. If it isn't the one of the fit before, the best checkpoint comes along."""
        before = self.folder
        self.folder = CheckpointFolder(folder)
        if before is not None and before.path != folder:
            self._settled = self._continues = False
            if is_global_zero:
                self._move_in(before.path, self.kept.best)

    def _clear(self, trainer: Trainer) -> None:
        assert self.folder is not None
        if trainer.is_global_zero:
            self.folder.clear_unfinished()

    def _move_in(self, other: Path, best: str | None) -> None:
        """Link the best checkpoint of another folder into this one, so that it can be found and kept here."""
        assert self.folder is not None
        with suppress(OSError):
            if best is not None and not (self.folder.path / best).exists():
                self.folder.adopt(other / best)

    def start(self, trainer: Trainer) -> None:
        """Begin to write in a run that isn't resumed from a file, but may be its callback's second fit."""
        assert self.folder is not None
        self._clear(trainer)
        here = [name for name in self.kept.files if (self.folder.path / name).exists()]
        latest = self.kept.latest
        self.kept = self.kept.only(trainer.strategy.broadcast(here))
        self._continues = bool(self.kept.files)
        if latest is not None and trainer.global_step < step_of(latest):
            # The steps of this fit begin at 0 again, so its names may be there already.
            self._earlier = self._earlier | frozenset(self.kept.files)
            self._continues = self._settled = False

    def resume(self, trainer: Trainer, state: dict[str, Any], same_metric: bool) -> None:
        """Begin to write in a run that is resumed from a file."""
        assert self.folder is not None
        self._clear(trainer)
        files, periodic, best = state["kept"]
        self.kept = Kept(tuple(files), tuple(periodic), best)
        self._continues, self._settled, self._earlier = True, False, frozenset()
        other = state.get("folder")
        if trainer.is_global_zero and other and Path(other) != self.folder.path and same_metric:
            self._move_in(Path(other), best)
        here = [name for name in self.kept.files if (self.folder.path / name).exists()]
        kept = self.kept.only(trainer.strategy.broadcast(here))
        if same_metric and self.kept.best and not kept.best:
            rank_zero_warn(
                f"EarlyStopCheckpoint: the best checkpoint so far, {self.kept.best}, isn't in "
                f"{self.folder.path}; its score {state['best']:g} still counts"
            )
        self.kept = kept if same_metric else kept._replace(best=None)

    # Save

    def save(
        self, trainer: Trainer, step: int, best: bool, periodic: bool, write: Callable[[Trainer, Path], None]
    ) -> None:
        """Write a checkpoint, then let the links point at it, then delete what is no longer kept."""
        assert self.folder is not None
        before, name = self.kept, self._name(step)
        new = name not in before.files
        self.kept = before.add(name, best, periodic)
        try:
            if new:
                self._write(trainer, self.folder.unfinished(name), write)
            self._publish(trainer, name if new else None)
        except BaseException:
            self.kept = before
            raise
        self.kept = self.kept.prune(self._keep_periodic)

    def _name(self, step: int) -> str:
        name, version = name_of(step), 2
        while name in self._earlier:
            name, version = name_of(step, version), version + 1
        return name

    def _write(self, trainer: Trainer, file: Path, write: Callable[[Trainer, Path], None]) -> None:
        error: BaseException | None = None
        try:
            write(trainer, file)
        except (Exception, CheckpointException) as found:
            error = found
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
        self._agree(trainer, error)

    def _publish(self, trainer: Trainer, name: str | None) -> None:
        """Write the files before the link `latest`, and delete old ones last."""
        folder, kept, error = self.folder, self.kept, None
        assert folder is not None
        try:
            if trainer.is_global_zero:
                if not self._settled:
                    self._settle(folder, kept)
                if name is not None:
                    folder.publish(name)
                folder.link(BEST, kept.best)
                folder.link(LATEST, kept.latest)
                folder.delete(set(kept.files).difference(kept.prune(self._keep_periodic).files))
        except OSError as found:
            error = found
        self._settled = True
        self._agree(trainer, error)

    def _settle(self, folder: CheckpointFolder, kept: Kept) -> None:
        if aside := folder.set_aside(kept.files, self._continues):
            rank_zero_warn(f"EarlyStopCheckpoint: another run's checkpoints were moved to {aside}")
        if slurm_job():
            folder.write(JOB, slurm_job())

    def _agree(self, trainer: Trainer, error: BaseException | None) -> None:
        """Raise on all ranks if there was an error on any."""
        if trainer.strategy.reduce_boolean_decision(error is None, all=True):
            return
        assert self.folder is not None
        with suppress(OSError):
            if trainer.is_global_zero:
                self.folder.clear_unfinished()
        found = "another process failed" if error is None else f"{type(error).__name__}: {error}"
        raise MisconfigurationException(
            f"EarlyStopCheckpoint could not save step {trainer.global_step} in {self.folder.path}: {found}. "
            "The checkpoints from before are whole, and latest.ckpt points at the last of them"
        ) from error


def check_numbers(least: int = 1, /, **numbers: float | None) -> None:
    """Refuse a number below the least."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found {name} {value}; expected at least {least}"
            )
