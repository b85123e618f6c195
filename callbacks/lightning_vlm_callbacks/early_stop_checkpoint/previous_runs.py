"""Which checkpoint `ckpt_path="last"` and `"best"` mean in a new process."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vlm_callbacks.checkpoint_files import CheckpointError, or_else
from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import LATEST
from lightning_vlm_callbacks.folder_lock import is_locked

__all__ = ["JOB", "find_checkpoint", "newest_of", "slurm_job"]

JOB = ".slurm-job"
"""The file beside checkpoints that says which SLURM job has written them."""


def find_checkpoint(trainer: Trainer, dirpath: str | Path | None, link: str) -> Path | None:
    """The checkpoint that a link of an earlier run points at.

    It is looked for in `dirpath`; else in the run's folder, if the logger has a fixed version or id or there
    is no logger; else in the folders of all runs of the logger's name, or of MLflow, whose names only its
    server knows. Of several the newest counts, that is the highest version or else the last by the clock, but
    those of runs that are still running are ignored. In a SLURM job those of the same job come first, so that
    the jobs of a sweep that are requeued together each continue their own.

    Args:
        trainer: Whose logger says where to look. Nothing of it is started.
        dirpath: Of the callback.
        link: The name of the link.

    Returns:
        The file or folder; None if there is none.
    """
    if dirpath is not None:
        return _target(Path(dirpath).expanduser().absolute() / link)
    own, others = _folders(trainer)
    if own is not None:
        return _target(own / "checkpoints" / link)
    return newest_of(others, link)


def newest_of(folders: Sequence[Path], link: str) -> Path | None:
    """What the newest of several runs' links points at.

    Args:
        folders: Of the runs.
        link: The name of the link.
    """
    paths = [folder / "checkpoints" / link for folder in folders if not is_locked(folder)]
    links = [path for path in paths if path.exists()]
    job = slurm_job()
    of_this_job = [path for path in links if job and _job_of(path.parent) == job]
    if not links:
        return None
    file = max(of_this_job or links, key=_newness).resolve()
    word = "last" if link == LATEST else link.removesuffix(".ckpt")
    whose = "of this SLURM job" if of_this_job else "of the newest earlier run"
    rank_zero_info(f"EarlyStopCheckpoint: ckpt_path {word} is {file}, {whose}")
    return file


def _newness(link: Path) -> tuple[int, float]:
    """Versions are counted, so they say which run is newer even if a clock was set back; ids don't."""
    number = re.fullmatch(r"version_(\d+)", link.parent.parent.name)
    return int(number[1]) if number else -1, link.stat().st_mtime


def slurm_job() -> str:
    """What names this job, also after it is requeued; empty outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    return os.environ.get("SLURM_JOB_ID", "")


def _target(link: Path) -> Path | None:
    if link.is_symlink() and not link.exists():
        raise CheckpointError(
            f"ckpt_path: found {link}, a link to {link.readlink()}, which isn't there{or_else(link)}; give "
            "ckpt_path one that is, or delete the link to begin again"
        )
    return link.resolve() if link.exists() else None


def _job_of(folder: Path) -> str:
    file = folder / JOB
    return file.read_text("utf-8").strip() if file.is_file() else ""


def _folders(trainer: Trainer) -> tuple[Path | None, list[Path]]:
    """The run's folder if it is known before the logger begins, else those of its logger's name."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir).absolute(), []
    logger = trainer.loggers[0]
    if isinstance(logger, MLFlowLogger):  # asked for its name, it would contact its server, on rank zero
        root = Path(logger.save_dir or trainer.default_root_dir).absolute()
        runs = root.glob(f"*/{logger._run_id or '*'}")  # EXPERIMENT/RUN, by their ids
        return None, [folder for folder in runs if re.fullmatch(r"[0-9a-f]{32}", folder.name)]
    version = logger._version if hasattr(logger, "_version") else logger.version
    parent = Path(logger.save_dir or trainer.default_root_dir, str(logger.name or "")).absolute()
    if version is not None:
        folder = parent / (version if isinstance(version, str) else f"version_{version}")
        if isinstance(version, str) or folder.is_dir():
            return folder, []
    return None, [folder for folder in parent.glob("*") if folder.is_dir()]
