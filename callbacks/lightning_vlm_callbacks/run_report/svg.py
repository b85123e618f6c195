"""Charts as inline SVG: text and vectors that need no other file."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, Points

__all__ = ["chart_svg", "curve_colour", "element", "mark_colour", "number", "stage_colour"]

CURVE_COLOURS = ("#1f77b4", "#d6604d", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17a2b8", "#bc8f00")
STAGE_COLOURS = ("#eef3f9", "#f8f1e3", "#eaf5ec", "#f6ecf3")
MARK_COLOURS = {"best": "#2ca02c", "skipped": "#d62728", "anomaly": "#ff7f0e", "resumed": "#7f7f7f"}
OTHER_MARK_COLOUR = "#555555"
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 20, 24
"""The margins of a picture, in pixels."""
MOST_DOTS = 40
"""A curve with more points than this has no dots."""
LEAST_STAGE_WIDTH = 45
"""The name of a stage that is narrower than this would run into the next name."""


def curve_colour(place: int) -> str:
    """The colour of a chart's curve; colours repeat if there are many curves."""
    return CURVE_COLOURS[place % len(CURVE_COLOURS)]


def stage_colour(place: int) -> str:
    """The colour of a stage's band; colours repeat if there are many stages."""
    return STAGE_COLOURS[place % len(STAGE_COLOURS)]


def mark_colour(kind: str) -> str:
    """The colour of the mark of an event of this kind."""
    return MARK_COLOURS.get(kind, OTHER_MARK_COLOUR)


def element(tag: str, content: str = "", title: str = "", **attributes: object) -> str:
    """An SVG element. An attribute's `_` stands for `-`, and `kind` for `class`.

    Args:
        tag: Its name.
        content: Text or elements, escaped already.
        title: What is shown while the mouse is over it.
        attributes: Numbers and texts, escaped here.

    >>> element("rect", title="a < b", x=1, text_anchor="end", kind="band")
    '<rect x="1" text-anchor="end" class="band"><title>a &lt; b</title></rect>'
    """
    start = tag
    for name, value in attributes.items():
        svg_name = "class" if name == "kind" else name.replace("_", "-")
        start += f' {svg_name}="{escape(str(value))}"'
    if title:
        content += f"<title>{escape(title)}</title>"
    return f"<{start}>{content}</{tag}>"


def picture(width: int, height: int, shapes: Sequence[str]) -> str:
    """An SVG that is as wide as the page."""
    return element("svg", "".join(shapes), viewBox=f"0 0 {width} {height}", role="img")


def number(value: float) -> str:
    """A value for people.

    >>> [number(value) for value in (0.00012345, 3.14159, 185840.0, 2.5e9)]
    ['0.0001234', '3.142', '185,840', '2.5e+09']
    """
    if 10_000 <= abs(value) < 10_000_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two numbers.

    >>> ticks(0.0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    >>> ticks(3, 1040)
    [200.0, 400.0, 600.0, 800.0, 1000.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        step = unit * factor
        if span / step <= most:
            break
    # The multiples of the step that lie at the limits themselves count, in spite of rounding.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(multiple * step, 12) for multiple in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; in a narrow range also twice and five times those.

    >>> log_ticks(0.04, 30)
    [0.1, 1.0, 10.0]
    >>> log_ticks(0.4, 3)
    [0.5, 1.0, 2.0]
    """
    lowest = math.floor(math.log10(low))
    highest = math.ceil(math.log10(high))
    exponents = range(lowest, highest + 1)
    every = math.ceil(len(exponents) / 8)
    is_narrow = high < 50 * low
    factors = (1, 2, 5) if is_narrow else (1,)
    inside = []
    for exponent in exponents[::every]:
        for factor in factors:
            value = factor * 10.0**exponent
            if low <= value <= high:
                inside.append(value)
    if len(inside) < 2:
        return [low, high]
    return inside


class _Axes(NamedTuple):
    """Where steps and values lie in a picture."""

    frame: Frame
    low: float
    high: float
    is_log: bool
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - TOP

    def x(self, step: float) -> float:
        span = max(self.frame.end - self.frame.start, 1)
        share = (step - self.frame.start) / span
        return round(LEFT + share * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        low = self._on_scale(self.low)
        high = self._on_scale(self.high)
        share = (self._on_scale(value) - low) / (high - low)
        return round(self.bottom - share * self.height, 1)

    def _on_scale(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def chart_svg(chart: Chart, frame: Frame, width: int = 900, height: int = 260) -> str:
    """A chart with its stages, marks and curves; the page has its title and legend."""
    low, high = _limits(chart)
    axes = _Axes(frame, low, high, chart.is_log, width - RIGHT, height - BOTTOM)
    shapes = [*_stages(axes), *_grid(axes), *_marks(axes)]
    for place, (name, points) in enumerate(chart.curves.items()):
        shapes += _curve(axes, name, points, curve_colour(place))
    return picture(width, height, shapes)


def _limits(chart: Chart) -> tuple[float, float]:
    """The lowest and the highest value to show, with a little room."""
    values = []
    for points in chart.curves.values():
        values += [value for _, value in points if _can_show(value, chart.is_log)]
    low = min(values, default=0.0)
    high = max(values, default=1.0)
    if chart.is_log:
        return low / 1.15, high * 1.15
    # Where all values are the same, the room is a share of that value, and some room if it is zero.
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _can_show(value: float, is_log: bool) -> bool:
    if is_log and value <= 0:
        return False
    return math.isfinite(value)


def _stages(axes: _Axes) -> list[str]:
    """A band for each stage, with its name above it."""
    shapes = []
    for place, stage in enumerate(axes.frame.stages):
        left = axes.x(max(stage.start, axes.frame.start))
        width = round(axes.x(stage.end) - left, 1)
        colour = stage_colour(place)
        band = element("rect", title=stage.text, x=left, y=TOP, width=width, height=axes.height, fill=colour)
        shapes.append(band)
        if width > LEAST_STAGE_WIDTH:
            shapes.append(element("text", f"stage {place}", x=left + 3, y=TOP - 5, kind="stage"))
    return shapes


def _grid(axes: _Axes) -> list[str]:
    """Lines at round values, the axis of steps, and their numbers."""
    find_ticks = log_ticks if axes.is_log else ticks
    shapes = []
    for value in find_ticks(axes.low, axes.high):
        y = axes.y(value)
        shapes.append(element("path", d=f"M{LEFT} {y}H{axes.right}", kind="grid"))
        shapes.append(element("text", number(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
    for step in ticks(axes.frame.start, axes.frame.end, 8):
        if step != int(step):
            continue
        x = axes.x(step)
        shapes.append(element("path", d=f"M{x} {axes.bottom}v4", kind="tick"))
        shapes.append(element("text", f"{step:,.0f}", x=x, y=axes.bottom + 16, text_anchor="middle"))
    shapes.append(element("path", d=f"M{LEFT} {axes.bottom}H{axes.right}", kind="tick"))
    return shapes


def _marks(axes: _Axes) -> list[str]:
    """The best checkpoint as a line through the chart, other events as short lines at its foot."""
    shapes = []
    for event in axes.frame.marks:
        height, style = 12, "mark"
        if event.kind == "best":
            height, style = axes.height, "mark best"
        line = f"M{axes.x(event.step)} {axes.bottom}v-{height}"
        title = f"step {event.step:,}: {event.kind}: {event.text}"
        colour = mark_colour(event.kind)
        shapes.append(element("path", title=title, d=line, stroke=colour, kind=style))
    return shapes


def _curve(axes: _Axes, name: str, points: Points, colour: str) -> list[str]:
    """A line, broken where a value can't be shown; NaN and infinity are crosses at the top."""
    path = ""
    shapes = []
    has_dots = len(points) <= MOST_DOTS
    command = "M"  # "move to" begins a piece of the line, "line to" continues it
    for step, value in points:
        x = axes.x(step)
        title = f"{name}, step {step:,}: {value:.6g}"
        if not _can_show(value, axes.is_log):
            command = "M"
            if not math.isfinite(value):
                shapes.append(element("text", "×", title, x=x, y=TOP + 9, kind="bad", text_anchor="middle"))
            continue
        y = axes.y(value)
        path += f"{command}{x} {y}"
        command = "L"
        if has_dots:
            shapes.append(element("circle", title=title, cx=x, cy=y, r=2.5, fill=colour))
    return [element("path", title=name, d=path, stroke=colour, kind="curve"), *shapes]
