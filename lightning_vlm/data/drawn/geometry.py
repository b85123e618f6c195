"""Outlines of shapes: turned, and fitted into a cell."""

import math
from collections.abc import Sequence

from lightning_vlm.data.drawn.vocabulary import Point

FINE = 4
"""Shapes are drawn at so many times the size, and then made smaller."""


def with_hole(outline: Sequence[Point], hole: Sequence[Point] | None) -> list[Point]:
    """One outline around a shape and its hole, by the even-odd rule: a line leads there and back."""
    if not hole:
        return list(outline)
    return [*outline, outline[0], *hole, hole[0]]


def turned(points: list[Point], width: int, height: int, degrees: int) -> list[Point]:
    """Points stretched by the width and the height of a cell, then turned."""
    cos = math.cos(math.radians(degrees))
    sin = math.sin(math.radians(degrees))
    turned = []
    for x, y in points:
        wide = x * width
        high = y * height
        turned.append((wide * cos - high * sin, wide * sin + high * cos))
    return turned


def fit(outline: list[Point], width: int, height: int) -> tuple[float, float, float]:
    """The scale and the shift across and down with which an outline just fills a cell in one direction."""
    xs = [x for x, _ in outline]
    ys = [y for _, y in outline]
    left, right = min(xs), max(xs)
    top, bottom = min(ys), max(ys)
    last_column = width - 1
    last_row = height - 1
    scale = min(last_column / (right - left), last_row / (bottom - top))
    across = (last_column - scale * (right + left)) / 2
    down = (last_row - scale * (bottom + top)) / 2
    return scale, across, down


def moved(points: list[Point], scale: float, across: float, down: float) -> list[Point]:
    return [(scale * x + across, scale * y + down) for x, y in points]
