"""What `lightning_vlm.preview` found, in the terminal."""

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_vlm.inspect.figures import (
    Preview,
    Row,
    Sample,
    left_out_words,
    length_words,
    percent,
    range_words,
    sample_words,
    share_words,
)
from lightning_vlm.inspect.tokens import seen
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
BAR = 40
"""The longest bar of the histogram."""
REASONS = 5
"""Samples left out that are listed; the page has more."""
LINES = 40
"""A longer sample loses its middle here; the page has all of it."""


def show(preview: Preview, console: Console) -> None:
    """Print the samples and then the figures, which so stay in view."""
    console.print(_key())
    for number, sample in enumerate(preview.samples, 1):
        console.print()
        console.print(_head(number, sample), soft_wrap=True)
        lines = list(body(sample, console.width - 4))
        if len(lines) > LINES:
            hidden = len(lines) - LINES + 1
            note = Text(f"… {hidden} lines more; the page shows them all …", "dim italic")
            lines[LINES * 3 // 4 : LINES * 3 // 4 + hidden] = [note]
        for line in lines:
            console.print(Text("  ").append_text(line), no_wrap=True)
    console.print()
    console.print(Text(share_words(preview), "bold"), soft_wrap=True)
    console.print(_kinds(preview))
    tasks = preview.by_task()
    if len(tasks) > 1:
        console.print(_tasks(tasks, preview.total))
    for line in (*_histogram(preview), *_left_out(preview)):
        console.print(line, soft_wrap=True)
    for words in preview.notes:
        console.print(Text.assemble(("note: ", "bold"), words), soft_wrap=True)


def body(sample: Sample, width: int) -> Iterator[Text]:
    """The tokens of a sample in lines of at most `width` columns. What is learned stands in ⟦ ⟧, with its
    weight behind it unless that is 1; so it shows without colours too."""
    text = Text()
    runs = groupby(sample.pieces, lambda piece: piece.weight)
    for weight, run in runs:
        text.append("⟦" if weight else "", "bold")
        for piece in run:
            style = f"{STYLES[piece.kind]}{f' {LEARNED}' if weight else ''}"
            if piece.kind in (Kind.IMAGE, Kind.PAD):
                text.append(f" {piece.text} ", style)
                continue
            for plain, some in groupby(seen(piece.text), lambda pair: pair[0] == pair[1]):
                marks = "".join(f"{mark}\n" if one == "\n" else mark for one, mark in some)
                text.append(marks, style if plain else f"{style} dim")
            text.append("" if piece.text else "∅", style)
        text.append(("⟧" if weight == 1 else f"⟧×{weight:g}") if weight else "", "bold")
    for row in text.split("\n"):
        yield from _fold(row, width)


def _fold(line: Text, width: int) -> Iterator[Text]:
    """Lines no wider than `width`, ended behind a mark of a space where there is one."""
    start, end, used = 0, 0, 0
    cuts = []
    for place, one in enumerate(line.plain):
        used += cell_len(one)
        if used > width:
            start = end if end > start else place
            cuts.append(start)
            used = cell_len(line.plain[start : place + 1])
        if one in "· ":
            end = place + 1
    yield from line.divide(cuts)


def _key() -> Text:
    key = Text.assemble(("⟦", "bold"), ("learned", LEARNED), ("⟧", "bold"), " and its weight if not 1; ")
    for kind in Kind:
        key.append(kind.name.lower(), STYLES[kind]).append(" ")
    return key.append("\n· space  ↵ new line  ⇥ tab", "dim")


def _head(number: int, sample: Sample) -> Text:
    return Text.assemble(
        (f"{number} {sample.fact.task}  ", "bold"),
        sample_words(sample),
        (f"  {sample.conversation.source}", "dim"),
    )


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right" if table.columns else "left")
    return table


def _kinds(preview: Preview) -> Table:
    total = preview.total
    table = _table("kind", "weight", "tokens", "share", "learned", "share of weight")
    for kind, row in preview.by_kind().items():
        style = f"{STYLES[kind]} {LEARNED}" if preview.kind_weight(kind) else STYLES[kind]
        cells = [
            f"{preview.kind_weight(kind):g}",
            f"{row.tokens:,}",
            percent(row.tokens, total.tokens),
            f"{row.learned:,}",
            percent(row.weight, total.weight),
        ]
        table.add_row(Text.assemble((row.name, style)), *cells)
    return table


def _tasks(rows: list[Row], total: Row) -> Table:
    table = _table("task", "samples", "tokens", "learned", "share learned", "share of weight")
    for row in (*rows, total):
        cells = [f"{row.samples:,}", f"{row.tokens:,}", f"{row.learned:,}"]
        cells += [percent(row.learned, row.tokens), percent(row.weight, total.weight)]
        table.add_row(Text(row.name), *cells, style="bold" if row is total else "")
    return table


def _histogram(preview: Preview) -> Iterator[Text]:
    bins, limit = preview.bins(), preview.max_length
    yield Text.assemble(("Lengths ", "bold"), length_words(preview))
    most = max((sum(one[2:]) for one in bins), default=0)
    wide = max((len(range_words(one)) for one in bins), default=0)
    for one in bins:
        line = Text(f"{range_words(one):>{wide}} ")
        for count, mark, style in (
            (one.kept, "█", "green"),
            (one.cut, "▓", "yellow"),
            (one.left_out, "░", "red"),
        ):
            line.append(mark * (-(-count * BAR // most)), style)
        line.append(f" {sum(one[2:]):,}")
        if limit is not None and one.start <= limit < one.stop:
            line.append(f"  ◀ max_length {limit:,}", "bold")
        yield line
    if any(one.cut or one.left_out for one in bins):
        yield Text("█ whole ", "green").append("▓ cut ", "yellow").append("░ left out", "red")


def _left_out(preview: Preview) -> Iterator[Text]:
    for line in left_out_words(preview):
        yield Text(line)
    for error in [*(one.error for one in preview.left_out), *preview.opened][:REASONS]:
        yield Text(f"  {error}", "dim")
