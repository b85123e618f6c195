"""Charts as inline SVG: text and vectors that need no other file."""

import math
from collections.abc import Sequence
from html import escape

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, Points, RankMap

__all__ = ["COLOURS", "MARK_COLOURS", "STAGE_COLOURS", "chart_svg", "rank_svg", "ticks"]

COLOURS = ("#1f77b4", "#d6604d", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17a2b8", "#bc8f00")
STAGE_COLOURS = ("#eef3f9", "#f8f1e3", "#eaf5ec", "#f6ecf3")
MARK_COLOURS = {"best": "#2ca02c", "skipped": "#d62728", "anomaly": "#ff7f0e", "resumed": "#7f7f7f"}
RANK_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From the lowest rank to the highest: those of matplotlib's viridis."""
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 20, 24
"""Margins, in pixels."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two numbers.

    >>> ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    >>> ticks(3, 1040)
    [200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    if not high > low:
        return [low]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (unit * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; in a narrow range also twice and five times those.

    >>> log_ticks(0.04, 30)
    [0.1, 1.0, 10.0]
    >>> log_ticks(0.4, 3)
    [0.5, 1.0, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = -(-len(powers) // 8)
    factors = (1, 2, 5) if high < 50 * low else (1,)
    numbers = [factor * 10.0**power for power in powers[::every] for factor in factors]
    inside = [number for number in numbers if low <= number <= high]
    return inside if len(inside) > 1 else [low, high]


class _Axes:
    """Where steps and values lie in a picture."""

    def __init__(self, frame: Frame, low: float, high: float, is_log: bool, width: int, height: int) -> None:
        self.frame, self.is_log = frame, is_log
        self.low, self.high = low, high
        self.right, self.bottom = width - RIGHT, height - BOTTOM

    def x(self, step: float) -> float:
        span = max(self.frame.end - self.frame.start, 1)
        return round(LEFT + (step - self.frame.start) / span * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return round(self.bottom - (at - low) / (high - low) * (self.bottom - TOP), 1)


def chart_svg(chart: Chart, frame: Frame, width: int = 900, height: int = 260) -> str:
    """A chart with its stages, marks and curves; the page has its title and legend."""
    low, high = _limits(chart)
    axes = _Axes(frame, low, high, chart.is_log, width, height)
    shapes = [*_stages(axes), *_grid(axes), *_marks(axes)]
    for number, (name, points) in enumerate(chart.curves.items()):
        shapes += _curve(axes, name, points, COLOURS[number % len(COLOURS)])
    return _svg(width, height, shapes)


def _svg(width: int, height: int, shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(shapes)}</svg>'


def _limits(chart: Chart) -> tuple[float, float]:
    """The lowest and the highest value to show, with a little room."""
    values = [
        value for points in chart.curves.values() for _, value in points if _can_show(value, chart.is_log)
    ]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if chart.is_log:
        return low / 1.15, high * 1.15
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _can_show(value: float, is_log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not is_log)


def _stages(axes: _Axes) -> list[str]:
    shapes = []
    for number, stage in enumerate(axes.frame.stages):
        left, right = axes.x(max(stage.start, axes.frame.start)), axes.x(stage.end)
        size = f'x="{left}" y="{TOP}" width="{round(right - left, 1)}" height="{axes.bottom - TOP}"'
        colour = STAGE_COLOURS[number % len(STAGE_COLOURS)]
        shapes.append(f'<rect {size} fill="{colour}"><title>{escape(stage.text)}</title></rect>')
        shapes.append(f'<text x="{left + 3}" y="{TOP - 5}" class="stage">stage {number}</text>')
    return shapes


def _grid(axes: _Axes) -> list[str]:
    shapes = []
    for value in (log_ticks if axes.is_log else ticks)(axes.low, axes.high):
        y = axes.y(value)
        shapes.append(f'<path d="M{LEFT} {y}H{axes.right}" class="grid"/>')
        shapes.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    for step in ticks(axes.frame.start, axes.frame.end, 8):
        if step == int(step):
            x = axes.x(step)
            shapes.append(f'<path d="M{x} {axes.bottom}v4" class="tick"/>')
            shapes.append(f'<text x="{x}" y="{axes.bottom + 16}" text-anchor="middle">{step:,.0f}</text>')
    shapes.append(f'<path d="M{LEFT} {axes.bottom}H{axes.right}" class="tick"/>')
    return shapes


def _marks(axes: _Axes) -> list[str]:
    """The best checkpoint as a line through the chart, other events as short lines at its foot."""
    shapes = []
    for event in axes.frame.marks:
        colour = MARK_COLOURS.get(event.kind, "#555")
        height = axes.bottom - TOP if event.kind == "best" else 12
        text = escape(f"step {event.step:,}: {event.kind}: {event.text}")
        line = f'd="M{axes.x(event.step)} {axes.bottom}v-{height}" stroke="{colour}"'
        shapes.append(
            f'<path {line} class="mark {"best" * (event.kind == "best")}"><title>{text}</title></path>'
        )
    return shapes


def _curve(axes: _Axes, name: str, points: Points, colour: str) -> list[str]:
    """A line, broken where a value can't be shown; NaN and infinity are crosses at the top."""
    commands, shapes, is_broken = [], [], True
    has_dots = len(points) <= 40
    for step, value in points:
        x = axes.x(step)
        title = f"<title>{escape(name)}, step {step:,}: {value:.6g}</title>"
        if not _can_show(value, axes.is_log):
            is_broken = True
            if not math.isfinite(value):
                shapes.append(f'<text x="{x}" y="{TOP + 9}" class="bad" text-anchor="middle">×{title}</text>')
            continue
        y = axes.y(value)
        commands.append(f"{'M' if is_broken else 'L'}{x} {y}")
        is_broken = False
        if has_dots:
            shapes.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}">{title}</circle>')
    path = (
        f'<path d="{"".join(commands)}" stroke="{colour}" class="curve"><title>{escape(name)}</title></path>'
    )
    return [path, *shapes]


def rank_svg(ranks: RankMap, frame: Frame, width: int = 900) -> str:
    """A row for each layer, coloured by its rank from change to change."""
    names = _short_names(list(ranks.ranks))
    row = max(4, min(18, 700 // len(names)))
    height = TOP + row * len(names) + BOTTOM
    left = 10 + 6.2 * max(map(len, names)) if row >= 9 else LEFT
    span = max(ranks.edges[-1] - ranks.edges[0], 1)
    highest = max(max(row_ranks) for row_ranks in ranks.ranks.values())

    def x(step: float) -> float:
        return round(left + (step - ranks.edges[0]) / span * (width - RIGHT - left), 1)

    shapes = []
    for number, (name, whole_name) in enumerate(zip(names, ranks.ranks, strict=True)):
        y = TOP + row * number
        if row >= 9:
            shapes.append(f'<text x="{left - 5}" y="{y + row - 3}" text-anchor="end">{escape(name)}</text>')
        for start, end, rank in _runs(ranks.edges, ranks.ranks[whole_name]):
            size = f'x="{x(start)}" y="{y}" width="{round(x(end) - x(start), 1)}" height="{row}"'
            title = escape(f"{whole_name}: rank {rank} from step {start:,} to {end:,}")
            colour = _rank_colour(rank, highest)
            shapes.append(f'<rect {size} fill="{colour}"><title>{title}</title></rect>')
            if row >= 12 and x(end) - x(start) > 24:
                dark = "#fff" if rank < 0.6 * highest else "#222"
                shapes.append(f'<text x="{x(start) + 4}" y="{y + row - 4}" style="fill:{dark}">{rank}</text>')
    for step in ticks(ranks.edges[0], ranks.edges[-1], 8):
        shapes.append(f'<text x="{x(step)}" y="{height - 8}" text-anchor="middle">{step:,.0f}</text>')
    return _svg(width, height, shapes)


def _runs(edges: Sequence[int], values: Sequence[int]) -> list[tuple[int, int, int]]:
    """Start, end and value of each stretch in which the value doesn't change."""
    runs: list[tuple[int, int, int]] = []
    for start, end, value in zip(edges, edges[1:], values, strict=False):
        if runs and runs[-1][2] == value:
            start = runs.pop()[0]
        runs.append((start, end, value))
    return runs


def _rank_colour(rank: int, highest: int) -> str:
    """A colour between those of `RANK_COLOURS`; light grey where no adapter is left."""
    if rank == 0:
        return "#e8e8e8"
    place = rank / max(highest, 1) * (len(RANK_COLOURS) - 1)
    index = min(int(place), len(RANK_COLOURS) - 2)
    share = place - index
    mixed = [
        round(a + share * (b - a)) for a, b in zip(RANK_COLOURS[index], RANK_COLOURS[index + 1], strict=True)
    ]
    return f"rgb({','.join(map(str, mixed))})"


def _short_names(names: list[str]) -> list[str]:
    """Names without the words that all begin or end with.

    >>> _short_names(["model.layers.0.q.lora", "model.layers.1.v.lora"])
    ['0.q', '1.v']
    """
    words = [name.split(".") for name in names]
    while len(words) > 1 and all(len(some) > 1 for some in words) and len({some[0] for some in words}) == 1:
        words = [some[1:] for some in words]
    while len(words) > 1 and all(len(some) > 1 for some in words) and len({some[-1] for some in words}) == 1:
        words = [some[:-1] for some in words]
    return [".".join(some) for some in words]
