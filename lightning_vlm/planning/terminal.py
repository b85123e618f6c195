"""A plan in the terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_vlm.counted import counted
from lightning_vlm.planning.planned import Planned, Row
from lightning_vlm.training.memory.decide import gib
from lightning_vlm.training.memory.meter import MARGIN


def show(planned: Planned, console: Console) -> None:
    """Print all of it, the choice last."""
    console.print(_parts(planned))
    tokens = f"{planned.tokens[0]:,} tokens in the middle, {planned.tokens[1]:,} at most"
    patches = f", up to {planned.patches:,} patches" if planned.patches else ""
    looked = "" if planned.looked_at == planned.size else f" ({planned.looked_at:,} looked at)"
    _pair(console, "data", f"{counted(planned.size, 'sample')}{looked}: {tokens}{patches}")
    free = f"{gib(planned.room)} for training, since {MARGIN:.0%} stay free"
    _pair(console, "memory", f"{gib(planned.memory)}, {planned.device}: {free}")
    console.print()
    console.print(_methods(planned))
    for row in planned.rows:
        if row.why_not:
            console.print(f"{row.name}: {row.why_not}", highlight=False, markup=False)
    console.print(_peak(planned))
    console.print()
    if planned.written is not None:
        _pair(console, "written", _written(planned))
    for title, text in choice_lines(planned):
        _pair(console, title, text)


def _pair(console: Console, title: str, text: str) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8, style="bold")
    table.add_column(ratio=1)
    table.add_row(title, Text(text))
    console.print(table)


def _parts(planned: Planned) -> Table:
    table = Table(title=planned.model, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("train as configured", justify="right")
    for part in planned.parts:
        table.add_row(part.name, f"{part.parameters:,}", f"{part.trained:,}")
    table.add_section()
    every, trained = (
        sum(part.parameters for part in planned.parts),
        sum(part.trained for part in planned.parts),
    )
    table.add_row("all", f"{every:,}", f"{trained:,}")
    return table


def _methods(planned: Planned) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="a sample: a further one of the longest, with activations kept / computed again; "
        "fit: how many of them; ~ follows from other ranks",
        caption_justify="left",
    )
    table.add_column("method")
    for title in ("train", "weights", "optimizer", "a sample", "fit"):
        table.add_column(title, justify="right")
    for row in planned.rows:
        if not row.why_not:
            name = row.name if row.counted else f"{row.name} ~"
            style = "bold" if row.name == planned.name else ""
            table.add_row(name, *_figures(row), style=style)
    return table


def _figures(row: Row) -> Iterator[str]:
    yield short(row.trained)
    yield gib(row.need.weights)
    yield gib(row.need.states + row.need.gradients)
    need = row.need
    kept = max(row.kept.each, need.vision + need.language + need.loss)
    unit, size = ("GiB", 2**30) if kept >= 2**30 / 10 else ("MiB", 2**20)
    yield f"{kept / size:.1f} / {row.recomputed.each / size:.1f} {unit}"
    yield f"{row.fit.kept:,} / {row.fit.recomputed:,}"


def _peak(planned: Planned) -> Text:
    """What the chosen batch takes, in a line or two."""
    need, choice = planned.need, planned.choice
    again = ", recomputing" if choice.recompute else ""
    pieces = {
        "weights": need.weights,
        "optimizer": need.states,
        "gradients": need.gradients,
        "buckets of DDP": need.buckets,
        "kept by vision": need.vision,
        "by language": need.language,
        "by the loss": need.loss,
    }
    found = ", ".join(f"{name} {gib(size)}" for name, size in pieces.items() if size >= 2**20)
    head = f"{planned.name}, {choice.batch_size} at a time{again}: "
    return Text(f"{head}{found}; at most {gib(choice.gib * 2**30)} at once")


def _written(planned: Planned) -> str:
    """What the config takes unchanged."""
    assert planned.written is not None
    samples, recompute, size, fits = planned.written
    again = ", recomputing" if recompute else ""
    verdict = "fits" if fits else "doesn't fit"
    return f"{samples} at a time{again}: at most {gib(size)} at once, which {verdict}"


def choice_lines(planned: Planned) -> Iterator[tuple[str, str]]:
    """The choice: a title and a line each."""
    choice = planned.choice
    yield "choice", f"{choice.reasons[0]}" if choice.reasons else planned.name
    for reason in choice.reasons[1:]:
        yield "", reason
    if planned.longest is not None:
        of_model = ", as many as the model has positions for" if planned.is_longest_of_model else ""
        yield "longest", f"a single sample may have {planned.longest:,} tokens{of_model}"
    if planned.epoch is not None:
        epoch = planned.epoch
        what = "measured" if epoch.measured else "estimated"
        words = f"{duration(epoch.seconds)} for {counted(epoch.steps, 'step')}, {what}: {epoch.basis}"
        yield "epoch", words
    if planned.changes:
        first = "set"
        for key, value, why in planned.changes:
            yield first, f"{key}: {_value(value)}  # {why}"
            first = ""
    elif choice.fits:
        yield "config", "fits as it is"
    for note in planned.notes:
        yield "note", note


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(each)}" for key, each in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def short(number: float) -> str:
    """A number of parameters.

    >>> short(512), short(247_104), short(8_292_166_656)
    ('512', '247.1k', '8.29B')
    """
    for unit, size, digits in (("B", 1e9, 2), ("M", 1e6, 1), ("k", 1e3, 1)):
        if number >= size:
            return f"{number / size:.{digits}f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time.

    >>> duration(0.2), duration(95), duration(7300), duration(200_000)
    ('under a second', '1.6 min', '2.0 h', '2.3 days')
    """
    if seconds < 1:
        return "under a second"
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
