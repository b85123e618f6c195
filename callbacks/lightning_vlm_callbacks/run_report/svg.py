"""Charts as inline SVG: text and vectors that need no other file."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, Points

__all__ = ["COLOURS", "MARK_COLOURS", "OTHER_MARK_COLOUR", "STAGE_COLOURS", "chart_svg", "element", "number"]

COLOURS = ("#1f77b4", "#d6604d", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17a2b8", "#bc8f00")
STAGE_COLOURS = ("#eef3f9", "#f8f1e3", "#eaf5ec", "#f6ecf3")
MARK_COLOURS = {"best": "#2ca02c", "skipped": "#d62728", "anomaly": "#ff7f0e", "resumed": "#7f7f7f"}
OTHER_MARK_COLOUR = "#555555"
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 20, 24
"""Margins, in pixels."""
MOST_DOTS = 40
"""A curve with more points than this has no dots."""


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
    names = {name: "class" if name == "kind" else name.replace("_", "-") for name in attributes}
    given = "".join(f' {names[name]}="{escape(str(value))}"' for name, value in attributes.items())
    shown = f"<title>{escape(title)}</title>" if title else ""
    return f"<{tag}{given}>{content}{shown}</{tag}>"


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
    if not high > low:
        return [low]
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (unit * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; in a narrow range also twice and five times those.

    >>> log_ticks(0.04, 30)
    [0.1, 1.0, 10.0]
    >>> log_ticks(0.4, 3)
    [0.5, 1.0, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = math.ceil(len(powers) / 8)
    factors = (1, 2, 5) if high < 50 * low else (1,)
    found = [factor * 10.0**power for power in powers[::every] for factor in factors]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) > 1 else [low, high]


class _Axes(NamedTuple):
    """Where steps and values lie in a picture."""

    frame: Frame
    low: float
    high: float
    is_log: bool
    right: int
    bottom: int

    def x(self, step: float) -> float:
        span = max(self.frame.end - self.frame.start, 1)
        share = (step - self.frame.start) / span
        return round(LEFT + share * (self.right - LEFT), 1)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low)
        return round(self.bottom - share * (self.bottom - TOP), 1)

    def shows(self, value: float) -> bool:
        return _can_show(value, self.is_log)


def chart_svg(chart: Chart, frame: Frame, width: int = 900, height: int = 260) -> str:
    """A chart with its stages, marks and curves; the page has its title and legend."""
    low, high = _limits(chart)
    axes = _Axes(frame, low, high, chart.is_log, width - RIGHT, height - BOTTOM)
    shapes = [*_stages(axes), *_grid(axes), *_marks(axes)]
    for place, (name, points) in enumerate(chart.curves.items()):
        shapes += _curve(axes, name, points, COLOURS[place % len(COLOURS)])
    return picture(width, height, shapes)


def _limits(chart: Chart) -> tuple[float, float]:
    """The lowest and the highest value to show, with a little room."""
    all_values = [value for points in chart.curves.values() for _, value in points]
    values = [value for value in all_values if _can_show(value, chart.is_log)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if chart.is_log:
        return low / 1.15, high * 1.15
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _can_show(value: float, is_log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not is_log)


def _stages(axes: _Axes) -> list[str]:
    shapes = []
    for place, stage in enumerate(axes.frame.stages):
        left, right = axes.x(max(stage.start, axes.frame.start)), axes.x(stage.end)
        width, height = round(right - left, 1), axes.bottom - TOP
        colour = STAGE_COLOURS[place % len(STAGE_COLOURS)]
        band = element("rect", title=stage.text, x=left, y=TOP, width=width, height=height, fill=colour)
        shapes.append(band)
        if width > 45:  # else the name would run into the next one
            shapes.append(element("text", f"stage {place}", x=left + 3, y=TOP - 5, kind="stage"))
    return shapes


def _grid(axes: _Axes) -> list[str]:
    shapes = []
    values = log_ticks(axes.low, axes.high) if axes.is_log else ticks(axes.low, axes.high)
    for value in values:
        y = axes.y(value)
        shapes.append(element("path", d=f"M{LEFT} {y}H{axes.right}", kind="grid"))
        shapes.append(element("text", number(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
    for step in ticks(axes.frame.start, axes.frame.end, 8):
        if step == int(step):
            x = axes.x(step)
            shapes.append(element("path", d=f"M{x} {axes.bottom}v4", kind="tick"))
            shapes.append(element("text", f"{step:,.0f}", x=x, y=axes.bottom + 16, text_anchor="middle"))
    shapes.append(element("path", d=f"M{LEFT} {axes.bottom}H{axes.right}", kind="tick"))
    return shapes


def _marks(axes: _Axes) -> list[str]:
    """The best checkpoint as a line through the chart, other events as short lines at its foot."""
    shapes = []
    for event in axes.frame.marks:
        is_best = event.kind == "best"
        height = axes.bottom - TOP if is_best else 12
        line = f"M{axes.x(event.step)} {axes.bottom}v-{height}"
        title = f"step {event.step:,}: {event.kind}: {event.text}"
        colour = MARK_COLOURS.get(event.kind, OTHER_MARK_COLOUR)
        kind = "mark best" if is_best else "mark"
        shapes.append(element("path", title=title, d=line, stroke=colour, kind=kind))
    return shapes


def _curve(axes: _Axes, name: str, points: Points, colour: str) -> list[str]:
    """A line, broken where a value can't be shown; NaN and infinity are crosses at the top."""
    path, shapes, is_broken = "", [], True
    for step, value in points:
        x = axes.x(step)
        title = f"{name}, step {step:,}: {value:.6g}"
        if axes.shows(value):
            y = axes.y(value)
            path += f"{'M' if is_broken else 'L'}{x} {y}"
            if len(points) <= MOST_DOTS:
                shapes.append(element("circle", title=title, cx=x, cy=y, r=2.5, fill=colour))
        elif not math.isfinite(value):
            shapes.append(element("text", "×", title, x=x, y=TOP + 9, kind="bad", text_anchor="middle"))
        is_broken = not axes.shows(value)
    return [element("path", title=name, d=path, stroke=colour, kind="curve"), *shapes]
