"""The checkpoints of a run: what is written when, and what all ranks must agree on."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.distributed.checkpoint.api import CheckpointException

from lightning_vlm_callbacks.checkpoint_files import CheckpointError, in_words
from lightning_vlm_callbacks.early_stop_checkpoint.background import Background
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
    """

    def __init__(self, keep_periodic: int | None) -> None:
        self._keep_periodic = keep_periodic
        self.folder: CheckpointFolder | None = None
        self.kept = Kept()
        self._earlier: frozenset[str] = frozenset()
        """Names given in an earlier fit whose steps were counted from 0 too."""
        self._continues = False
        """Whether the links in the folder are this run's."""
        self._settled = False
        """Whether other runs' files are out of the way."""
        self._background = Background()
        self._before = Kept()
        """What was kept before the checkpoint that is being written in the background."""
        self._begun = 0
        """The step of that checkpoint."""

    def path_of(self, name: str | None) -> str:
        """The path of a checkpoint; empty if there is none."""
        return "" if self.folder is None or not name else str(self.folder.path / name)

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
        latest = self.kept.latest
        self.kept = self._still_there(trainer, self.kept)
        self._continues = bool(self.kept.files)
        if latest is not None and trainer.global_step < step_of(latest):
            # The steps of this fit begin at 0 again, so its names may be there already.
            self._earlier = self._earlier | frozenset(self.kept.files)
            self._continues = self._settled = False

    def resume(self, trainer: Trainer, state: dict[str, Any], same_metric: bool) -> None:
        """Begin to write in a run that is resumed from a file."""
        assert self.folder is not None
        self._clear(trainer)
        self._continues = True
        self._settled = False
        self._earlier = frozenset()
        files, periodic, best = state["kept"]
        other = state.get("folder")
        if trainer.is_global_zero and other and Path(other) != self.folder.path and same_metric:
            self._move_in(Path(other), best)
        self.kept = self._still_there(trainer, Kept(tuple(files), tuple(periodic), best))
        if not same_metric:
            self.kept = self.kept._replace(best=None)
        elif best and not self.kept.best:
            rank_zero_warn(
                f"EarlyStopCheckpoint: the best checkpoint so far, {best}, isn't in {self.folder.path}; its "
                f"score {state['best']:g} still counts"
            )

    def _still_there(self, trainer: Trainer, kept: Kept) -> Kept:
        """Those of some checkpoints that the first process finds in the folder."""
        assert self.folder is not None
        here = [name for name in kept.files if (self.folder.path / name).exists()]
        return kept.only(trainer.strategy.broadcast(here))

    def _without_gone(self, trainer: Trainer) -> Kept:
        """What is kept, without what someone has deleted meanwhile."""
        assert self.folder is not None
        kept = self._still_there(trainer, self.kept)
        gone = [name for name in self.kept.files if name not in kept.files]
        if gone:
            rank_zero_warn(f"EarlyStopCheckpoint: gone from {self.folder.path}: {', '.join(gone)}")
        return kept

    # Save

    def save(
        self, trainer: Trainer, step: int, best: bool, periodic: bool, write: Callable[[Trainer, Path], None]
    ) -> None:
        """Write a checkpoint, then let the links point at it, then delete what is no longer kept."""
        assert self.folder is not None
        self.wait(trainer)
        name = self._name(step)
        before = self._without_gone(trainer)
        is_new = name not in before.files
        self.kept = before.add(name, best, periodic)  # which the checkpoint itself holds, too
        try:
            if is_new:
                self._write(trainer, self.folder.unfinished(name), write)
            self._publish(trainer, name if is_new else None)
        except BaseException:
            self.kept = before
            raise
        self.kept = self.kept.prune(self._keep_periodic)

    def begin(
        self,
        trainer: Trainer,
        step: int,
        best: bool,
        periodic: bool,
        copy: Callable[[Trainer, Path], Callable[[], None]],
    ) -> None:
        """As `save`, but only copy the state now; it is written and published while training goes on.

        Args:
            trainer: All of its ranks must call this.
            step: The number of optimizer steps made.
            best: Whether it is the best so far.
            periodic: Whether it is one of those saved by steps or epochs.
            copy: Copies the state, and returns what writes it.
        """
        assert self.folder is not None
        self.wait(trainer)
        name = self._name(step)
        self.kept = self._without_gone(trainer)
        if name in self.kept.files:  # only the links change
            self.save(trainer, step, best, periodic, lambda trainer, file: None)
            return
        self._before, self._begun = self.kept, step
        self.kept = kept = self._before.add(name, best, periodic)  # which the checkpoint itself holds, too
        try:
            write = copy(trainer, self.folder.unfinished(name))
        except BaseException:
            self.kept = self._before
            raise
        mine = self.folder if trainer.is_global_zero else None
        self._background.start(partial(self._write_and_publish, write, mine, name, kept))
        self.kept = kept.prune(self._keep_periodic)

    def _write_and_publish(
        self, write: Callable[[], None], folder: CheckpointFolder | None, name: str, kept: Kept
    ) -> None:
        write()
        if folder is not None:
            self._publish_in(folder, name, kept)
        self._settled = True

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint was begun that hasn't been waited for."""
        return self._background.is_busy

    def is_written(self, trainer: Trainer) -> bool:
        """Whether a checkpoint that was begun has been written on all ranks, which must all ask."""
        if not self._background.is_busy:
            return False
        return trainer.strategy.reduce_boolean_decision(self._background.is_done(), all=True)

    def wait(self, trainer: Trainer, together: bool = True) -> bool:
        """Wait for the checkpoint that is being written in the background.

        Args:
            trainer: Whose run it is.
            together: Whether all ranks call this; otherwise they can't agree on errors.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: It couldn't be written.
        """
        if not self._background.is_busy:
            return False
        error = self._background.wait()
        try:
            if together or error is not None:
                self._agree(trainer, error, self._begun, together)
        except BaseException:
            self.kept = self._before
            raise
        return True

    def close(self) -> None:
        """End the thread that writes in the background."""
        self._background.close()

    def _name(self, step: int) -> str:
        version = 1
        while name_of(step, version) in self._earlier:
            version += 1
        return name_of(step, version)

    def _write(self, trainer: Trainer, file: Path, write: Callable[[Trainer, Path], None]) -> None:
        error: BaseException | None = None
        try:
            write(trainer, file)
        except (Exception, CheckpointException) as found:
            error = found
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
        self._agree(trainer, error, trainer.global_step)

    def _publish(self, trainer: Trainer, name: str | None) -> None:
        """Write the files before the link `latest`, and delete old ones last."""
        assert self.folder is not None
        error: OSError | None = None
        try:
            if trainer.is_global_zero:
                self._publish_in(self.folder, name, self.kept)
        except OSError as found:
            error = found
        self._settled = True
        self._agree(trainer, error, trainer.global_step)

    def _publish_in(self, folder: CheckpointFolder, name: str | None, kept: Kept) -> None:
        if not self._settled:
            self._settle(folder, kept)
        if name is not None:
            folder.publish(name)
        folder.link(BEST, kept.best)
        folder.link(LATEST, kept.latest)
        remaining = kept.prune(self._keep_periodic).files
        folder.delete([file for file in kept.files if file not in remaining])

    def _settle(self, folder: CheckpointFolder, kept: Kept) -> None:
        """Move other runs' files out of the way, and say which SLURM job writes here."""
        aside = folder.set_aside(kept.files, self._continues)
        if aside is not None:
            rank_zero_warn(f"EarlyStopCheckpoint: another run's checkpoints were moved to {aside}")
        if slurm_job():
            folder.write(JOB, slurm_job())

    def _agree(self, trainer: Trainer, error: BaseException | None, step: int, together: bool = True) -> None:
        """Raise on all ranks if there was an error on any."""
        if together and trainer.strategy.reduce_boolean_decision(error is None, all=True):
            return
        assert self.folder is not None
        with suppress(OSError):
            if trainer.is_global_zero:
                self.folder.clear_unfinished()
        found = in_words(error)
        if together and trainer.world_size > 1:
            every = [""] * trainer.world_size
            torch.distributed.all_gather_object(every, found)
            found = found or next(filter(None, every))
        before = "nothing was saved before"
        if (self.folder.path / LATEST).exists():
            before = 'the checkpoints from before are whole, and ckpt_path="last" goes on from the newest'
        raise CheckpointError(
            f"EarlyStopCheckpoint could not save step {step} in {self.folder.path}: {found}; {before}"
        ) from error
