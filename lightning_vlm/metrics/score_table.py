"""Scores as people read them: a table, in all and for each task."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from lightning_vlm.terminal import visible

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
