"""Where the files of a run are: its config, checkpoints, pictures and logs."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_vlm.outputs.terminal import short_path


def config_file(folder: Path, logs: bool, command: str) -> Path | None:
    """Where the config of a run is saved, so that no file of the user or of another run is overwritten.

    Args:
        folder: Of the run.
        logs: Whether it has a logger. Without one, runs share the folder, often the working directory, so the
            config lies beside the checkpoints.
        command: What runs. A config of `fit` stays where another command uses its folder.

    Returns:
        The file; None if the config isn't worth a file.
    """
    if not logs:
        return folder / "checkpoints" / "config.yaml" if command == "fit" else None
    file = folder / "config.yaml"
    return file if command == "fit" or not file.exists() else folder / f"config-{command}.yaml"


def checkpoints_of(trainer: Trainer) -> dict[Path, str]:
    """The checkpoints of a fit that a user needs, the best first, each with a note."""
    found: dict[Path, str] = {}
    for callback in trainer.checkpoint_callbacks:
        best, last = (getattr(callback, name, "") for name in ("best_model_path", "last_model_path"))
        monitor, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
        note = f" (best: {monitor} {float(score):.4g})" if monitor and score is not None else ""
        for path, words in ((best, note), (last, "")):
            if path and Path(path).exists():
                found.setdefault(Path(path), words)
    return dict(sorted(found.items(), key=lambda item: not item[1]))


def pictures_of(trainer: Trainer, folder: Path, since: float) -> list[Path]:
    """The pictures that a run has saved, in its folder or beside its checkpoints.

    Args:
        trainer: Of the run.
        folder: Of the run.
        since: When it began, in seconds as of `time.time()`. Older pictures aren't its own.
    """
    folders = [folder, folder / "checkpoints"]
    folders += [Path(path).parent for path in checkpoints_of(trainer)]
    files = dict.fromkeys(file for one in folders for file in sorted(one.glob("*.png")))
    # Some file systems store times in whole seconds only.
    return [file for file in files if file.stat().st_mtime >= since - 1]


def logs_of(trainer: Trainer, folder: Path) -> Iterator[str]:
    """Where the log of each logger is, in words."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            yield from _wandb_log(logger)
        elif isinstance(logger, CSVLogger):
            file = Path(logger.log_dir, "metrics.csv")
            yield short_path(file if file.exists() else logger.log_dir)
        else:
            yield short_path(getattr(logger, "log_dir", None) or folder)


def _wandb_log(logger: WandbLogger) -> Iterator[str]:
    run = logger.experiment
    if run.offline:
        folder = shlex.quote(short_path(Path(run.dir).parent))
        yield f"offline; `wandb sync {folder}` uploads it"
    elif run.url:
        yield run.url
