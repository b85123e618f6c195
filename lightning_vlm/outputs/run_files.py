"""Where the files of a run are: its checkpoints and logs."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_vlm.outputs.trackio_logger import TrackioLogger
from lightning_vlm.terminal import short_path


def checkpoints_of(trainer: Trainer) -> dict[Path, str]:
    """The best and the last checkpoint of each callback that saves, the best first, each with a note."""
    notes: dict[str, str] = {}
    paths: list[str] = []
    for callback in trainer.checkpoint_callbacks:
        # A callback of the base class Checkpoint has none of these attributes.
        best, score = getattr(callback, "best_model_path", ""), getattr(callback, "best_model_score", None)
        monitor = getattr(callback, "monitor", None)
        if monitor and score is not None:
            notes.setdefault(best, f" (best: {monitor} {float(score):.4g})")
        paths += [best, getattr(callback, "last_model_path", "")]
    existing = [path for path in [*notes, *paths] if path and Path(path).exists()]
    return {Path(path): notes.get(path, "") for path in existing}


def logs_of(trainer: Trainer, folder: Path) -> Iterator[str]:
    """Where the log of each logger is, in words."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            yield from _wandb_log(logger)
        elif isinstance(logger, CSVLogger):
            file = Path(logger.log_dir, "metrics.csv")
            yield short_path(file if file.exists() else logger.log_dir)
        elif isinstance(logger, TensorBoardLogger):
            shown = shlex.quote(short_path(logger.save_dir))
            yield f"{short_path(logger.log_dir)}; `tensorboard --logdir {shown}` shows it"
        elif isinstance(logger, MLFlowLogger):
            yield _mlflow_log(logger)
        elif isinstance(logger, TrackioLogger):
            yield _trackio_log(logger)
        else:
            yield short_path(getattr(logger, "log_dir", None) or folder)


def _wandb_log(logger: WandbLogger) -> Iterator[str]:
    run = logger.experiment
    if run.offline:
        folder = shlex.quote(short_path(Path(run.dir).parent))
        yield f"offline; `wandb sync {folder}` uploads it"
    elif run.url:
        yield run.url


def _mlflow_log(logger: MLFlowLogger) -> str:
    uri = logger._tracking_uri
    run = f"run {logger.run_id} in {uri}"
    if uri.startswith(("http://", "https://")):
        return run
    return f"{run}; `mlflow ui --backend-store-uri {shlex.quote(uri)}` shows it"


def _trackio_log(logger: TrackioLogger) -> str:
    from trackio.utils import TRACKIO_DIR

    place = logger.experiment.url  # of a Space or a server, without a token
    if place:
        return f"run {logger.version} in {place}"
    shown = f"`trackio show --project {shlex.quote(logger.name)}` shows it"
    return f"run {logger.version} in {short_path(TRACKIO_DIR)}; {shown}"
