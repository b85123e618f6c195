"""Scores as people read them: a table, in all and for each task."""

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.table import Table
from rich.text import Text

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.outputs.terminal import print_line, say, visible

SCORES = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "loss": "loss",
    "perplexity": "perplexity",
    "supervised": "learned",
}
"""The scores of a stage in the order of the table's columns, and their headings."""


def score_table(title: str, metrics: Mapping[str, float], stage: str) -> Table | None:
    """The scores of a stage, in all and for each task.

    Args:
        title: Stands above the table.
        metrics: As they are logged, such as `val/loss` and `val/loss/ocr`. Others are left aside.
        stage: `val` or `test`.

    Returns:
        The table; None if there is no score.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        found = score_of(name, stage)
        if found is not None:
            score, task = found
            rows.setdefault(task, {})[score] = float(value)
    if not rows:
        return None
    columns = [score for score in SCORES if any(score in row for row in rows.values())]
    table = Table(title=Text(title), title_justify="left", title_style="")
    table.add_column("task")
    for score in columns:
        table.add_column(SCORES[score], justify="right")
    for task in sorted(rows):  # The row of all tasks together has no name and comes first.
        cells = [_number(score, rows[task].get(score)) for score in columns]
        table.add_row(Text(visible(task) or "all"), *cells, style="" if task else "bold")
    return table


def score_of(name: str, stage: str) -> tuple[str, str] | None:
    """Which score of which task a logged name is; None if it is another metric.

    >>> score_of("val/loss/ocr", "val"), score_of("val/loss", "val"), score_of("lr", "val")
    (('loss', 'ocr'), ('loss', ''), None)
    """
    prefix, _, rest = name.partition("/")
    score, _, task = rest.partition("/")
    return (score, task) if prefix == stage and score in SCORES else None


def _number(score: str, value: float | None) -> str:
    if value is None:
        return ""
    if score == "supervised":
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def take_over_printing(trainer: Trainer) -> dict[str, float] | None:
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


def print_scores(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Print the table of `Trainer.validate` or `test`, and below it what others have logged.

    Args:
        trainer: Whose call ends.
        metrics: All that was logged.
    """
    if not trainer.is_global_zero:
        return
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
    limit = trainer.limit_val_batches if stage == "val" else trainer.limit_test_batches
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule) or split not in data.sources or limit != 1.0:
        return words
    return f"{words}: {len(data.sources[split]):,} samples"
