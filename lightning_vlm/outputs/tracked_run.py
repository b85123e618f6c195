"""Which run of a tracker a checkpoint belongs to, so that what resumes from it continues that run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import BEST, LATEST
from lightning_vlm_callbacks.early_stop_checkpoint.previous_runs import find_checkpoint

from lightning_vlm.models.loading.checkpoint import load_file
from lightning_vlm.outputs.trackio_logger import TrackioLogger

WANDB, MLFLOW, TRACKIO = "wandb_id", "mlflow_id", "trackio_name"
"""Where a checkpoint of ours keeps the run of each tracker."""
NAMES = {WANDB: "Weights & Biases", MLFLOW: "MLflow", TRACKIO: "Trackio"}
ARGUMENTS = {WANDB: "id", MLFLOW: "run_id", TRACKIO: "name"}
"""The argument of a logger that names its run."""


def run_ids(trainer: Trainer) -> dict[str, str]:
    """The run of each tracker that a Trainer logs to, as checkpoints keep it."""
    found: dict[str, str] = {}
    for key, logger in _tracked(trainer):
        version = logger.version
        if version is not None:
            found.setdefault(key, str(version))
    return found


def saved_ids(checkpoint: str | Path) -> dict[str, str]:
    """The runs that a checkpoint was logged to; empty if there was none, or if this is no checkpoint."""
    try:
        content = load_file(Path(checkpoint), values=False)
        own = content["lightning_vlm"]
    except Exception:  # A broken file is reported when it is loaded; others have no entry of ours.
        return {}
    return {key: own[key] for key in NAMES if key in own}


def resume_run(trainer: Trainer, checkpoint: str | Path) -> None:
    """Let a resumed run continue the runs of trackers that its checkpoint belongs to.

    Args:
        trainer: Its loggers haven't started a run yet. A logger with a run of its own keeps it.
        checkpoint: The checkpoint that is resumed: a file, or `last` or `best` of an EarlyStopCheckpoint.
    """
    unnamed = [(key, logger) for key, logger in _tracked(trainer) if not _is_named(logger)]
    if not unnamed or not trainer.is_global_zero:
        return
    file = _find(trainer, checkpoint)
    saved = {} if file is None else saved_ids(file)
    for key, logger in unnamed:
        if key in saved and _continue(logger, saved[key]):
            other = f"to begin another, set the logger's {ARGUMENTS[key]}"
            rank_zero_info(f"{NAMES[key]}: continues run {saved[key]}; {other}")


def note_other_run(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Say that a resumed run logs to another run than the one before, as a logger's can't be changed now.

    Args:
        trainer: The Trainer that resumes.
        state: Our own entry of the checkpoint.
    """
    now = run_ids(trainer)
    for key, run in now.items():
        saved = state.get(key)
        if saved and saved != run:
            rank_zero_info(
                f"{NAMES[key]}: the checkpoint belongs to run {saved}, this is run {run}; to continue the "
                f"same one, make the logger with {ARGUMENTS[key]}={saved!r}"
            )


def _tracked(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    kinds: dict[str, type[Logger]] = {WANDB: WandbLogger, MLFLOW: MLFlowLogger, TRACKIO: TrackioLogger}
    for logger in trainer.loggers:
        for key, kind in kinds.items():
            if isinstance(logger, kind):
                yield key, logger


def _is_named(logger: Any) -> bool:
    """Whether the user named the run."""
    if isinstance(logger, MLFlowLogger):  # asked for its version, it begins a run
        return logger._run_id is not None
    return logger.version is not None


def _continue(logger: Any, run: str) -> bool:
    """Whether a logger now continues a run. Lightning has no public way to name that of a logger."""
    if isinstance(logger, WandbLogger):
        logger._id = logger._wandb_init["id"] = run
    elif isinstance(logger, TrackioLogger):
        logger.continue_run(run)
    elif isinstance(logger, MLFlowLogger):
        try:
            logger._mlflow_client.update_run(run, status="RUNNING")
        except Exception as error:  # of another store, or deleted
            rank_zero_warn(f"MLflow: begins another run, as run {run} can't be continued ({error})")
            return False
        logger._run_id = run
    return True


def _find(trainer: Trainer, checkpoint: str | Path) -> Path | None:
    if checkpoint not in ("last", "best"):
        return Path(checkpoint)
    link = LATEST if checkpoint == "last" else BEST
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, EarlyStopCheckpoint):
            return find_checkpoint(trainer, callback.dirpath, link)
    return None
