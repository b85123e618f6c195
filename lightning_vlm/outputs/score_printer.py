"""Prints the scores of `Trainer.validate` and `Trainer.test` as a table."""

from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_vlm.counted import counted
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.metrics.score_table import score_of, score_table
from lightning_vlm.terminal import print_line, say


class ScorePrinter(Callback):
    """Prints scores in place of Lightning's table with 16 decimals, once the progress bar has gone."""

    def __init__(self) -> None:
        self._scores: dict[str, float] | None = None

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores = _take_over_printing(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores = _take_over_printing(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._scores is not None and trainer.is_global_zero:
            _print_scores(trainer, self._scores)
        self._scores = None


def _take_over_printing(trainer: Trainer) -> dict[str, float] | None:
    """Keep Lightning from printing the scores of `validate` or `test`, as it does with 16 decimals.

    Args:
        trainer: At the end of an evaluation.

    Returns:
        All that was logged; None if nothing is to be printed.
    """
    loops = {TrainerFn.VALIDATING: trainer.validate_loop, TrainerFn.TESTING: trainer.test_loop}
    loop = loops.get(trainer.state.fn) if trainer.state.fn else None
    if loop is None or not loop.verbose:
        return None
    loop.verbose = False  # Each call of the Trainer sets it again.
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _print_scores(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Print the table of scores, and below it what others have logged."""
    stage = "test" if trainer.state.fn == TrainerFn.TESTING else "val"
    title = _title(trainer, stage)
    table = score_table(title, metrics, stage)
    if table is None:
        print_line(title, "no score: no token has weight, and no answer has a reference")
    else:
        say(table)
    for name, value in metrics.items():
        if score_of(name, stage) is None:
            print_line(name, f" {value:.4g}")


def _title(trainer: Trainer, stage: str) -> str:
    words, split = ("Validation", "val") if stage == "val" else ("Test", "test")
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule) or split not in data.sources:
        return words
    return f"{words}: {what_is_scored(trainer, data, split)}"


def what_is_scored(trainer: Trainer, data: VLMDataModule, split: str) -> str:
    """How many samples a validation or a test scores, in words.

    Args:
        trainer: Its limit may leave some of them out.
        data: The data.
        split: "val" or "test".
    """
    samples = counted(len(data.samples(split)), "sample")
    limit = _limit(trainer, split)
    if limit is None:
        return samples
    if isinstance(limit, int):
        return f"at most {counted(limit, 'batch', 'batches')} of {samples}"
    return f"{limit:.0%} of the batches of {samples}"


def is_limited(trainer: Trainer, split: str) -> bool:
    """Whether a validation ("val") or a test ("test") may leave samples out."""
    return _limit(trainer, split) is not None


def _limit(trainer: Trainer, split: str) -> int | float | None:
    limit = trainer.limit_val_batches if split == "val" else trainer.limit_test_batches
    everything = isinstance(limit, float) and limit == 1.0  # 1 is a batch
    return None if everything else limit
