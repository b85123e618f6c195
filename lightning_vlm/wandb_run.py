"""A run on Weights & Biases: which one a checkpoint belongs to, and the pictures that it gets."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

KEY = "wandb_id"
"""Where a checkpoint of ours keeps the id of its run."""


def loggers_of(trainer: Trainer) -> list[WandbLogger]:
    """Those that send to Weights & Biases."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def run_id(trainer: Trainer) -> str | None:
    """The id of a Trainer's run; None without a WandbLogger."""
    ids = [logger.version for logger in loggers_of(trainer)]
    return ids[0] if ids else None


def saved_id(checkpoint: str | Path) -> str | None:
    """The id of the run that wrote a checkpoint; None if it wasn't logged there, or this is no checkpoint."""
    try:
        holds = torch.load(checkpoint, map_location="meta", weights_only=True)
    except Exception:  # What is wrong with the file is said where it is loaded.
        return None
    own = holds.get("lightning_vlm") if isinstance(holds, dict) else None
    found = own.get(KEY) if isinstance(own, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def resumed_in(loggers: Any, checkpoint: str | Path) -> Iterator[None]:
    """Let the WandbLogger of a config go on in the run that a checkpoint belongs to.

    Args:
        loggers: `trainer.logger` of a parsed config, from which loggers are made meanwhile. One that names
            its run already keeps it.
        checkpoint: What is resumed.
    """
    listed = loggers if isinstance(loggers, list) else [loggers]
    ours = [one for one in listed if getattr(one, "class_path", "").endswith(".WandbLogger")]
    unnamed = [one.init_args for one in ours if not (one.init_args.get("id") or one.init_args.get("version"))]
    found = saved_id(checkpoint) if unnamed else None
    if found is None:
        yield
        return
    for options in unnamed:
        options["id"] = found
    try:
        yield
    finally:
        for options in unnamed:
            options["id"] = None
    rank_zero_info(f"Weights & Biases: goes on with run {found}; to begin another, set the logger's id")


def note_other_run(trainer: Trainer, saved: str | None) -> None:
    """Say that a resumed run logs to another run than the one before, as a logger's id can't be changed.

    Args:
        trainer: That resumes.
        saved: The id in the checkpoint.
    """
    now = run_id(trainer)
    if saved and now and saved != now:
        rank_zero_info(
            f"Weights & Biases: the checkpoint belongs to run {saved}, this is run {now}; to go on in the "
            f"same one, make the logger with id={saved!r}"
        )


def send_pictures(trainer: Trainer, files: Iterable[Path]) -> None:
    """Show pictures in a run, each under its name.

    Args:
        trainer: Whose loggers get them, on rank zero.
        files: PNG files.
    """
    if not trainer.is_global_zero:
        return
    for logger in loggers_of(trainer):
        for file in files:
            logger.log_image(f"pictures/{file.stem}", [str(file)])
