"""A comparison for the terminal."""

import textwrap

from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_vlm.compare.comparison import Comparison, Part, SetResult
from lightning_vlm.compare.sentences import (
    difference_text,
    estimate_text,
    findings,
    method_lines,
    model_rows,
    notes,
    text_rows,
)
from lightning_vlm.counted import counted
from lightning_vlm.metrics.score_table import heading
from lightning_vlm.terminal import LABEL, print_line, print_lines, say, visible

_STYLES = {"better": "green", "worse": "red"}
MOST_TASKS = 12
"""How many tasks have a table of their own; the page has all."""


def show(comparison: Comparison) -> None:
    """Print it."""
    for result in comparison.sets:
        for part in result.parts[: MOST_TASKS + 1]:
            say(_scores(comparison, result, part))
        left = len(result.parts) - MOST_TASKS - 1
        if left > 0:
            print_line("", f"{left} more tasks are on the page")
        say(_table(text_rows(comparison, result)))
    if any(len(row) > 1 for row in model_rows(comparison)):
        say(_table(model_rows(comparison)))
    for line in method_lines(comparison):
        _print("trained", line)
    for word, sentence in findings(comparison):
        _print(word, sentence)
    for note in notes(comparison):
        _print("note", note)


def _print(name: str, sentence: str) -> None:
    """Print a sentence on as many lines as it needs."""
    print_lines(name, textwrap.wrap(visible(sentence), max(get_console().width - LABEL, 30)))


def _scores(comparison: Comparison, result: SetResult, part: Part) -> Table:
    title = result.set.name + (f", task {part.task}" if part.task else "")
    table = Table(
        title=Text(visible(f"{title}: {counted(part.samples, 'sample')}"), "bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("score")
    table.add_column("model", overflow="fold")
    table.add_column("value [95%]", no_wrap=True)
    with_quantized = any(model.entrant.quantized for model in comparison.models)
    first = "itself" if with_quantized and len(comparison.models) == 2 else comparison.models[0].label
    several = with_quantized and len(comparison.models) > 2
    table.add_column(Text("difference" if several else f"against {visible(first)}"), no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in part.rows:
        name = heading(row.name)
        for number, model in enumerate(comparison.models):
            estimate, difference = row.estimates[number], row.differences[number]
            if estimate is None:
                continue
            verdict = "" if difference is None else difference.verdict
            table.add_row(
                name,
                Text(visible(model.label)),
                estimate_text(estimate),
                difference_text(difference),
                Text(verdict, _STYLES.get(verdict, "")),
            )
            name = ""
    return table


def _table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
