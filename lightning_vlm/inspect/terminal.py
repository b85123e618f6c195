"""A preview in the terminal."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_vlm.inspect import summary
from lightning_vlm.inspect.gain import describe
from lightning_vlm.inspect.preview import Fate, Preview, Sample
from lightning_vlm.inspect.tokens import Piece, visible_characters
from lightning_vlm.kinds import Kind

STYLES = {
    # Named colours follow the terminal's own theme, dark or light.
    Kind.PAD: "dim strike",
    Kind.SPECIAL: "dim",
    Kind.IMAGE: "reverse blue",
    Kind.INSTRUCTION: "default",
    Kind.RESPONSE: "green",
    Kind.BOX: "magenta",
    Kind.ENTITY: "cyan",
}
LEARNED = "bold underline"
BARS: dict[Fate, tuple[str, str]] = {
    "kept": ("█", "green"),
    "truncated": ("▓", "yellow"),
    "skipped": ("░", "red"),
}
"""The character and the colour that the histogram draws each fate with."""
BAR = 40
"""The length of the longest bar."""
ERRORS = 5
"""How many skipped samples are listed; the page lists more."""
LINES = 40
"""A sample with more lines loses its middle here; the page shows all of it."""


def show(preview: Preview, console: Console) -> None:
    """Print the samples and then the summary, which therefore stays in view."""
    console.print(_key())
    for number, sample in enumerate(preview.samples, 1):
        console.print()
        console.print(_head(number, sample), soft_wrap=True)
        for place, video in enumerate(sample.videos, 1):
            console.print(Text(f"  video {place}: {video.describe()}", "blue"), soft_wrap=True)
        lines = list(sample_lines(sample, console.width - 4))
        for line in _without_middle(lines):
            console.print(Text("  ").append_text(line), no_wrap=True)
        gain = describe(sample.pieces)
        if gain is not None:
            console.print(Text(f"  {gain}", "yellow"), soft_wrap=True)
    console.print()
    console.print(Text(summary.describe_share(preview), "bold"), soft_wrap=True)
    console.print(_kind_table(preview))
    if len(preview.by_task()) > 1:
        console.print(_task_table(preview))
    for line in _histogram(preview):
        console.print(line, soft_wrap=True)
    for line in _skipped(preview):
        console.print(line, soft_wrap=True)
    for note in preview.notes:
        console.print(Text.assemble(("note: ", "bold"), note), soft_wrap=True)


def sample_lines(sample: Sample, width: int) -> Iterator[Text]:
    """The tokens of a sample in lines of at most `width` columns.

    What is learned stands in ⟦ ⟧, followed by its weight unless that is 1, so it can be seen without colours.
    """
    text = Text()
    for weight, run in groupby(sample.pieces, lambda piece: piece.weight):
        if weight:
            text.append("⟦", "bold")
        for piece in run:
            _append_piece(text, piece)
        if weight == 1:
            text.append("⟧", "bold")
        elif weight:
            text.append(f"⟧×{weight:g}", "bold")
    for line in text.split("\n"):
        yield from _fold(line, width)


def _append_piece(text: Text, piece: Piece) -> None:
    style = _style(piece.kind, piece.weight)
    if piece.kind in (Kind.IMAGE, Kind.PAD):
        text.append(f" {piece.text} ", style)
        return
    if not piece.text:
        text.append("∅", style)
    for is_itself, run in groupby(visible_characters(piece.text), lambda shown: shown[0] == shown[1]):
        marks = ""
        for character, mark in run:
            marks += mark
            if character == "\n":
                marks += "\n"
        text.append(marks, style if is_itself else f"{style} dim")


def _style(kind: Kind, weight: float) -> str:
    if weight:
        return f"{STYLES[kind]} {LEARNED}"
    return STYLES[kind]


def _fold(line: Text, width: int) -> Iterator[Text]:
    """Break a line so that no part is wider than `width`, after the mark of a space where there is one."""
    plain = line.plain
    start = 0
    after_space = 0
    used = 0
    breaks = []
    for index, character in enumerate(plain):
        used += cell_len(character)
        if used > width:
            start = after_space if after_space > start else index
            breaks.append(start)
            moved = plain[start : index + 1]
            used = cell_len(moved)
        if character in "· ":
            after_space = index + 1
    yield from line.divide(breaks)


def _without_middle(lines: list[Text]) -> list[Text]:
    if len(lines) <= LINES:
        return lines
    hidden = len(lines) - LINES + 1  # the note takes a line as well
    start = LINES * 3 // 4
    stop = start + hidden
    note = Text(f"… {hidden} lines more; the page shows them all …", "dim italic")
    return [*lines[:start], note, *lines[stop:]]


def _key() -> Text:
    key = Text.assemble(("⟦", "bold"), ("learned", LEARNED), ("⟧", "bold"), " and its weight if not 1; ")
    for kind in Kind:
        key.append(kind.name.lower(), STYLES[kind])
        key.append(" ")
    key.append("\n· space  ↵ new line  ⇥ tab", "dim")
    return key


def _head(number: int, sample: Sample) -> Text:
    return Text.assemble(
        (f"{number} {sample.stats.task}  ", "bold"),
        summary.describe_sample(sample),
        (f"  {sample.conversation.source}", "dim"),
    )


def _kind_table(preview: Preview) -> Table:
    styles = [_style(kind, preview.kind_weight(kind)) for kind in Kind]
    return _table(summary.kind_table(preview), styles)


def _task_table(preview: Preview) -> Table:
    content = summary.task_table(preview)
    table = _table(content, [""] * len(content.rows))
    table.rows[-1].style = "bold"
    return table


def _table(content: summary.Table, styles: Iterable[str]) -> Table:
    """A table whose first column has a style in each row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first_column, *other_columns = content.columns
    table.add_column(first_column)
    for column in other_columns:
        table.add_column(column, justify="right")
    for (name, *values), style in zip(content.rows, styles, strict=True):
        # A cell that is a Text can't be markup, whatever the name of a task is.
        table.add_row(Text.assemble((name, style)), *values)
    return table


def _histogram(preview: Preview) -> Iterator[Text]:
    yield Text.assemble(("Lengths ", "bold"), summary.describe_lengths(preview))
    limit = preview.max_length
    bins = summary.length_bins(preview)
    if not bins:
        return
    most = max(bin.total for bin in bins)
    width = max(len(bin.range) for bin in bins)
    for bin in bins:
        line = Text(f"{bin.range:>{width}} ")
        for fate, (character, style) in BARS.items():
            length = math.ceil(bin.counts.get(fate, 0) * BAR / most)  # a single sample shows as well
            line.append(character * length, style)
        line.append(f" {bin.total:,}")
        if limit is not None and bin.start <= limit < bin.stop:
            line.append(f"  ◀ max_length {limit:,}", "bold")
        yield line
    if any(bin.total > bin.counts.get("kept", 0) for bin in bins):
        names = []
        for fate, (character, style) in BARS.items():
            names.append(Text(f"{character} {summary.FATES[fate]}", style))
        yield Text(" ").join(names)


def _skipped(preview: Preview) -> Iterator[Text]:
    for line in summary.describe_skipped(preview):
        yield Text(line)
    for error in summary.errors(preview)[:ERRORS]:
        yield Text(f"  {error}", "dim")
