"""A run on Weights & Biases: which one a checkpoint belongs to, and the pictures that it gets."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import BEST, LATEST
from lightning_vlm_callbacks.early_stop_checkpoint.previous_runs import find_checkpoint

KEY = "wandb_id"
"""Where a checkpoint of ours keeps the id of its run."""


def loggers_of(trainer: Trainer) -> list[WandbLogger]:
    """The loggers that send to Weights & Biases."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def run_id(trainer: Trainer) -> str | None:
    """The id of a Trainer's run; None without a WandbLogger."""
    ids = [logger.version for logger in loggers_of(trainer)]
    return ids[0] if ids else None


def saved_id(checkpoint: str | Path) -> str | None:
    """The id of the run that wrote a checkpoint; None if it wasn't logged there, or this is no checkpoint."""
    try:
        content = torch.load(checkpoint, map_location="meta", weights_only=True)
        return content["lightning_vlm"].get(KEY)
    except Exception:  # A broken file is reported when it is loaded; others have no entry of ours.
        return None


def resume_run(trainer: Trainer, checkpoint: str | Path) -> None:
    """Let a resumed run continue the run of Weights & Biases that its checkpoint belongs to.

    Args:
        trainer: Its loggers haven't started a run yet. A WandbLogger with an id of its own keeps it.
        checkpoint: The checkpoint that is resumed: a file, or `last` or `best` of an EarlyStopCheckpoint.
    """
    unnamed = [logger for logger in loggers_of(trainer) if logger.version is None]
    if not unnamed or not trainer.is_global_zero:
        return
    file = _find(trainer, checkpoint)
    found = None if file is None else saved_id(file)
    if found is None:
        return
    for logger in unnamed:
        # Lightning has no public way to name the run of a logger that is already made.
        logger._id = logger._wandb_init["id"] = found
    rank_zero_info(f"Weights & Biases: continues run {found}; to begin another, set the logger's id")


def _find(trainer: Trainer, checkpoint: str | Path) -> Path | None:
    if checkpoint not in ("last", "best"):
        return Path(checkpoint)
    link = LATEST if checkpoint == "last" else BEST
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, EarlyStopCheckpoint):
            return find_checkpoint(trainer, callback.dirpath, link)
    return None


def note_other_run(trainer: Trainer, saved: str | None) -> None:
    """Say that a resumed run logs to another run than the one before, as a logger's id can't be changed.

    Args:
        trainer: The Trainer that resumes.
        saved: The id in the checkpoint.
    """
    now = run_id(trainer)
    if saved and now and saved != now:
        rank_zero_info(
            f"Weights & Biases: the checkpoint belongs to run {saved}, this is run {now}; to continue the "
            f"same one, make the logger with id={saved!r}"
        )


def send_picture(trainer: Trainer, file: Path) -> None:
    """Show a picture in the run on Weights & Biases, under its file's name.

    Args:
        trainer: The run's Trainer, on rank zero.
        file: A PNG file.
    """
    for logger in loggers_of(trainer):
        logger.log_image(f"pictures/{file.stem}", [str(file)])
