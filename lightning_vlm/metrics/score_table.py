"""Scores as people read them: a table, in all and for each task."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from lightning_vlm.metrics.known_scores import SCORES, is_score
from lightning_vlm.metrics.scores import LEVEL
from lightning_vlm.terminal import visible

HEADINGS = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "parse_failures": "parse failures",
    "supervised": "learned",
}
"""The headings of columns that aren't the names of their scores."""
_OF_LOSSES = ("loss", "perplexity", "supervised")


def score_table(title: str, metrics: Mapping[str, float], stage: str) -> Table | None:
    """The scores of a stage, in all, for each task and for each level.

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
    columns = sorted({score for row in rows.values() for score in row}, key=_place)
    table = Table(title=Text(title), title_justify="left", title_style="")
    table.add_column("task")
    for score in columns:
        table.add_column(HEADINGS.get(score, score), justify="right")
    # The row of all tasks together has no name and comes first; those of levels come last.
    for task in sorted(rows, key=lambda name: (name.startswith(LEVEL), name)):
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
    is_known = score in _OF_LOSSES or is_score(score)
    return (score, task) if prefix == stage and is_known else None


def _place(score: str) -> tuple[int, str]:
    """Where the column of a score stands: scores of answers in the order of their table, then losses."""
    order = [*SCORES, *_OF_LOSSES]
    if score in order:
        return order.index(score), ""
    return order.index("acc@0.8"), score


def _number(score: str, value: float | None) -> str:
    if value is None:
        return ""
    if score == "supervised":
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"
