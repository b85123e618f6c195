"""Pictures, tables and histograms for the loggers of a Trainer, each in the way that it shows them.

Weights & Biases and every logger with the same methods (`ShowsMedia`) get them as they are. TensorBoard gets
pictures, histograms, and tables as text. MLflow gets files: pictures, and tables as CSV. Other loggers, such
as CSVLogger, take numbers alone and get nothing.
"""

import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

__all__ = [
    "ShowsHistograms",
    "ShowsMedia",
    "log_histograms",
    "log_picture",
    "log_picture_to",
    "log_table",
    "shows_histograms",
    "shows_pictures",
]


@runtime_checkable
class ShowsMedia(Protocol):
    """A logger with Lightning's methods for pictures and tables, as a WandbLogger has them."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log pictures: paths, or PIL images."""

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Log a table by its columns' names and its rows."""


@runtime_checkable
class ShowsHistograms(Protocol):
    """A logger that takes histograms that are already counted."""

    def log_histogram(
        self, key: str, counts: Sequence[float], edges: Sequence[float], step: int | None = None
    ) -> None:
        """Log how many values lie between each edge and the next."""


def log_picture(trainer: Trainer, name: str, picture: Any, step: int | None = None) -> None:
    """Send a picture to the loggers that show pictures.

    Args:
        trainer: Whose loggers get it. Only rank zero's do.
        name: What it is called, such as `pictures/loss`.
        picture: The path of a PNG file, or a PIL image.
        step: The number of optimizer steps made, for one of several pictures of this name. None is for a
            picture of the whole run.
    """
    for logger in _loggers(trainer):
        log_picture_to(logger, name, picture, step)


def shows_pictures(logger: Logger) -> bool:
    """Whether `log_picture` reaches a logger."""
    kinds = TensorBoardLogger | MLFlowLogger | ShowsMedia
    return isinstance(logger, kinds) and not isinstance(logger, DummyLogger)


def log_picture_to(logger: Logger, name: str, picture: Any, step: int | None = None) -> None:
    """Send a picture to one logger; the arguments are those of `log_picture`."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, _pixels(picture), step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        _picture_to_mlflow(logger, name, picture, step)
    elif isinstance(logger, ShowsMedia):
        given = str(picture) if isinstance(picture, Path) else picture
        logger.log_image(name, [given], **_at(step))


def log_table(
    trainer: Trainer,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int | None = None,
) -> None:
    """Send a table of texts and numbers to the loggers that show tables.

    Args:
        trainer: Whose loggers get it. Only rank zero's do.
        name: What it is called, such as `plan`.
        columns: The names of its columns.
        rows: Its rows.
        step: As in `log_picture`.
    """
    for logger in _loggers(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, as_markdown(columns, rows), step)
        elif isinstance(logger, MLFlowLogger):
            place = f"tables/{name}.csv" if step is None else f"tables/{name}/{step:08}.csv"
            logger.experiment.log_text(logger.run_id, as_csv(columns, rows), place)
        elif isinstance(logger, ShowsMedia):
            logger.log_table(name, list(columns), [list(row) for row in rows], **_at(step))


def shows_histograms(trainer: Trainer) -> bool:
    """Whether `log_histograms` reaches a logger of a Trainer, or would without its `fast_dev_run`."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return True
    kinds = WandbLogger | TensorBoardLogger | ShowsHistograms
    return any(
        isinstance(logger, kinds) and not isinstance(logger, DummyLogger) for logger in trainer.loggers
    )


def log_histograms(
    trainer: Trainer, histograms: Mapping[str, Sequence[float]], edges: Sequence[float], step: int
) -> None:
    """Send histograms to the loggers that show them.

    Args:
        trainer: Whose loggers get them. Only rank zero's do.
        histograms: For each name how many values lie between each edge and the next.
        edges: The edges of all bins, one more than there are bins.
        step: The number of optimizer steps made.
    """
    for logger in _loggers(trainer):
        if isinstance(logger, WandbLogger):
            _ = logger.experiment  # imports wandb, which this package doesn't: it works without
            kind = sys.modules["wandb"].Histogram
            made = {
                name: kind(np_histogram=(list(counts), list(edges))) for name, counts in histograms.items()
            }
            logger.log_metrics(made, step=step)
        elif isinstance(logger, TensorBoardLogger):
            for name, counts in histograms.items():
                _histogram_to_tensorboard(logger, name, counts, edges, step)
        elif isinstance(logger, ShowsHistograms):
            for name, counts in histograms.items():
                logger.log_histogram(name, counts, edges, step)


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as Markdown.

    >>> print(as_markdown(["layer", "rank"], [["q|k", 8], ["v", 0.123456]]))
    | layer | rank |
    | --- | --- |
    | q\\|k | 8 |
    | v | 0.1235 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV.

    >>> as_csv(["layer", "rank"], [["q, k", 8]]).splitlines()
    ['layer,rank', '"q, k",8']
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _loggers(trainer: Trainer) -> list[Logger]:
    if not trainer.is_global_zero:
        return []
    # A DummyLogger, as in `fast_dev_run`, takes any call and shows nothing.
    return [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]


def _at(step: int | None) -> dict[str, int]:
    return {} if step is None else {"step": step}


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _opened(picture: Any) -> Any:
    from PIL import Image  # Pillow is no dependency here; a caller that has a picture has it too.

    return Image.open(picture) if isinstance(picture, Path) else picture


def _pixels(picture: Any) -> Any:
    import numpy

    return numpy.asarray(_opened(picture).convert("RGB"))


def _picture_to_mlflow(logger: MLFlowLogger, name: str, picture: Any, step: int | None) -> None:
    if step is None:
        logger.experiment.log_image(logger.run_id, _opened(picture), f"{name}.png")
    else:
        logger.experiment.log_image(logger.run_id, _opened(picture), key=_mlflow_key(name), step=step)


def _mlflow_key(name: str) -> str:
    """A name as MLflow takes it for a picture of a step.

    >>> _mlflow_key("predictions/01 légende: a")
    'predictions/01 l_gende_ a'
    """
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


def _histogram_to_tensorboard(
    logger: TensorBoardLogger, name: str, counts: Sequence[float], edges: Sequence[float], step: int
) -> None:
    number = sum(counts)
    if not number:
        return
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    total = sum(count * middle for count, middle in zip(counts, middles, strict=True))
    squares = sum(count * middle**2 for count, middle in zip(counts, middles, strict=True))
    logger.experiment.add_histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=number,
        sum=total,
        sum_squares=squares,
        bucket_limits=[float(edge) for edge in edges[1:]],
        bucket_counts=list(counts),
        global_step=step,
    )
