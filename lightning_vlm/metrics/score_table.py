"""Scores as people read them: a table, in all and for each task."""

import math
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_vlm.metrics.known_scores import is_score, place_of
from lightning_vlm.metrics.scores import LEVEL
from lightning_vlm.terminal import visible

HEADINGS = {
    "token_f1": "token F1",
    "supervised": "learned",
}
"""The headings of columns that are more than the names of their scores."""
MOST_COLUMNS = 6
"""How many scores stand side by side; more of them don't fit into a terminal."""
_OF_LOSSES = ("loss", "perplexity", "supervised")


def score_table(title: str, metrics: Mapping[str, float], stage: str) -> Table | Group | None:
    """The scores of a stage, in all, for each task and for each level.

    Args:
        title: Stands above the table.
        metrics: As they are logged, such as `val/loss` and `val/loss/ocr`. Others are left aside.
        stage: `val` or `test`.

    Returns:
        The table, or several where there are too many scores for one; None if there is no score.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        found = score_of(name, stage)
        if found is not None:
            score, task = found
            rows.setdefault(task, {})[score] = float(value)
    scores = sorted({score for row in rows.values() for score in row}, key=_place)
    if not scores:
        return None
    count = math.ceil(len(scores) / MOST_COLUMNS)
    size = math.ceil(len(scores) / count)
    blocks = [scores[start : start + size] for start in range(0, len(scores), size)]
    tables = [_table(title if block is blocks[0] else "", rows, block) for block in blocks]
    return tables[0] if len(tables) == 1 else Group(*tables)


def _table(title: str, rows: Mapping[str, Mapping[str, float]], scores: Sequence[str]) -> Table:
    """Some scores, of those tasks and levels that have one of them."""
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="")
    table.add_column("task", overflow="fold")
    for score in scores:
        table.add_column(heading(score), justify="right")
    # The row of all tasks together has no name and comes first; those of levels come last.
    for task in sorted(rows, key=lambda name: (name.startswith(LEVEL), name)):
        if any(score in rows[task] for score in scores):
            cells = [_number(score, rows[task].get(score)) for score in scores]
            table.add_row(Text(visible(task) or "all"), *cells, style="" if task else "bold")
    return table


def heading(score: str) -> str:
    """What a table calls a score.

    >>> heading("exact_match"), heading("token_f1"), heading("supervised")
    ('exact match', 'token F1', 'learned')
    """
    return HEADINGS.get(score, score.replace("_", " "))


def score_of(name: str, stage: str) -> tuple[str, str] | None:
    """Which score of which task a logged name is; None if it is another metric.

    >>> score_of("val/loss/ocr", "val"), score_of("val/loss", "val"), score_of("lr", "val")
    (('loss', 'ocr'), ('loss', ''), None)
    """
    prefix, _, rest = name.partition("/")
    score, _, task = rest.partition("/")
    is_known = score in _OF_LOSSES or is_score(score)
    return (score, task) if prefix == stage and is_known else None


def _place(score: str) -> tuple[bool, tuple[int, str]]:
    """Where the column of a score stands: scores of answers in their own order, then those of losses."""
    if score in _OF_LOSSES:
        return True, (_OF_LOSSES.index(score), "")
    return False, place_of(score)


def _number(score: str, value: float | None) -> str:
    if value is None:
        return ""
    if score == "supervised":
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"
