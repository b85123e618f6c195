"""What the writer of answers asks of a Trainer and its data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_vlm.callbacks.answer_page import Shown, shown_answer
from lightning_vlm.callbacks.answer_stream import STDOUT
from lightning_vlm.callbacks.kept_answers import KeptAnswers
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.stream import Stream
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.keep_rule import KeepRule
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.terminal import short_path


def kept_answers(rule: KeepRule, choice: ScoreChoice, trainer: Trainer, module: Any) -> KeptAnswers:
    """What chooses answers to train on, of a file of questions."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule) or stream_of(trainer) is not None:
        raise UserError("keep: it needs a file of questions with right answers; name one in data.predict")
    return KeptAnswers(rule, choice, module.processor, data.samples("predict"))


def stream_of(trainer: Trainer) -> Stream | None:
    """What comes in over time, if that is what is answered."""
    given = getattr(getattr(trainer, "datamodule", None), "given", {}).get("predict")
    return given if isinstance(given, Stream) else None


def shown(path: Path, way: str = "in") -> str:
    """Where answers are, in words."""
    if str(path) == STDOUT:
        return f"{'to' if way == 'to' else 'on'} standard output"
    return f"{way} {short_path(path)}"


def shown_answers(trainer: Trainer, lines: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[Shown]:
    """The first answers with their samples; none where those are gone, or aren't ours.

    Args:
        trainer: That has predicted.
        lines: Of the file of answers.
        places: Which samples they are about.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule) or stream_of(trainer) is not None or len(lines) != len(places):
        return []
    source = data.samples("predict")
    return [
        shown_answer(number, line, source[place])
        for number, (line, place) in enumerate(zip(lines, places, strict=True))
    ]


def gathered(trainer: Trainer, own: Any) -> list[Any]:
    """What each rank has. All ranks must call it."""
    ranks = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(ranks, own)
    return ranks


def may_go_on(trainer: Trainer) -> bool:
    """Whether each process may begin at another batch, and all batches come."""
    is_whole = trainer.limit_predict_batches == 1.0 and not trainer.fast_dev_run  # type: ignore[attr-defined]
    alone = isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)
    return is_whole and alone and len(loaders(trainer)) == 1


def loaders(trainer: Trainer) -> list[ResumableLoader]:
    """The loaders of prompts that may begin at a later batch."""
    found = trainer.predict_dataloaders
    loaders = found if isinstance(found, list) else [found]
    return [loader for loader in loaders if isinstance(loader, ResumableLoader)]


def choice_of(module: LightningModule) -> ScoreChoice:
    """The scores that a module has chosen for each task."""
    evaluation = getattr(getattr(module, "callbacks", None), "evaluation", None)
    return getattr(evaluation, "choice", None) or ScoreChoice()


def refuse_own_data(path: Path, trainer: Trainer) -> None:
    """A file can't be answered and written at once."""
    given = getattr(getattr(trainer, "datamodule", None), "given", {}).get("predict")
    if isinstance(given, str | Path) and Path(given).resolve() == path.resolve():
        raise UserError(f"out: found {path}, which data.predict reads; name another file")


def skipped_by_reader(trainer: Trainer) -> list[str]:
    """The errors of samples that were skipped when the data was opened; every rank knows them all."""
    source = getattr(getattr(trainer, "datamodule", None), "sources", {}).get("predict")
    return [] if source is None else [str(error) for error in source.skipped]
