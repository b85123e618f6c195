"""The rank of each layer over steps, as inline SVG."""

from collections.abc import Sequence
from html import escape
from itertools import chain, pairwise
from typing import NamedTuple

from lightning_vlm_callbacks.run_report.charts import RankMap
from lightning_vlm_callbacks.run_report.svg import BOTTOM, LEFT, RIGHT, TOP, element, picture, ticks

__all__ = ["rank_svg"]

COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From rank 0 to the highest: those of matplotlib's viridis."""
NO_ADAPTER = "#e8e8e8"
PIXELS_PER_LETTER = 6.2
WIDTH = 900


class _Stretch(NamedTuple):
    """Steps between which the rank of a layer doesn't change."""

    start: int
    end: int
    rank: int


class _Rows(NamedTuple):
    """Where steps lie in a picture, and how high its rows are."""

    first: int
    last: int
    left: float
    height: int
    highest: int
    """The highest rank."""

    def x(self, step: float) -> float:
        span = max(self.last - self.first, 1)
        share = (step - self.first) / span
        return round(self.left + share * (WIDTH - RIGHT - self.left), 1)


def rank_svg(ranks: RankMap) -> str:
    """A row for each layer, coloured by its rank from change to change."""
    names = _short_names(list(ranks.ranks))
    row_height = max(4, min(18, 700 // len(names)))
    has_names = row_height >= 9  # in lower rows there is no room for text
    left: float = LEFT
    if has_names:
        longest = max(map(len, names))
        left = 10 + PIXELS_PER_LETTER * longest
    highest = max(chain.from_iterable(ranks.ranks.values()))
    rows = _Rows(ranks.edges[0], ranks.edges[-1], left, row_height, highest)
    shapes = []
    top = TOP
    for name, (whole_name, values) in zip(names, ranks.ranks.items(), strict=True):
        if has_names:
            y = top + row_height - 3
            shapes.append(element("text", escape(name), x=left - 5, y=y, text_anchor="end"))
        for stretch in _stretches(ranks.edges, values):
            shapes += _cell(rows, top, stretch, whole_name)
        top += row_height
    height = top + BOTTOM
    for step in ticks(rows.first, rows.last, 8):
        shapes.append(element("text", f"{step:,.0f}", x=rows.x(step), y=height - 8, text_anchor="middle"))
    return picture(WIDTH, height, shapes)


def _cell(rows: _Rows, top: int, stretch: _Stretch, name: str) -> list[str]:
    """A coloured stretch of a layer's row, with its rank as text where there is room for it."""
    start = rows.x(stretch.start)
    width = round(rows.x(stretch.end) - start, 1)
    title = f"{name}: rank {stretch.rank} from step {stretch.start:,} to {stretch.end:,}"
    colour = _colour(stretch.rank, rows.highest)
    shapes = [element("rect", title=title, x=start, y=top, width=width, height=rows.height, fill=colour)]
    if rows.height >= 12 and width > 24:
        is_dark = 0 < stretch.rank < 0.6 * rows.highest
        style = "fill:#fff" if is_dark else "fill:#222"
        y = top + rows.height - 4
        shapes.append(element("text", str(stretch.rank), x=start + 4, y=y, style=style))
    return shapes


def _stretches(edges: Sequence[int], values: Sequence[int]) -> list[_Stretch]:
    """The stretches of a layer, from the rank that it has after each edge but the last.

    >>> [tuple(stretch) for stretch in _stretches([0, 10, 20, 30], [8, 8, 12])]
    [(0, 20, 8), (20, 30, 12)]
    """
    found: list[_Stretch] = []
    for (start, end), rank in zip(pairwise(edges), values, strict=True):
        if found and found[-1].rank == rank:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(_Stretch(start, end, rank))
    return found


def _colour(rank: int, highest: int) -> str:
    """A colour between those of `COLOURS`."""
    if rank == 0:
        return NO_ADAPTER
    place = rank / highest * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    share = place - index
    red, green, blue = (
        round(low + share * (high - low))
        for low, high in zip(COLOURS[index], COLOURS[index + 1], strict=True)
    )
    return f"rgb({red},{green},{blue})"


def _short_names(names: list[str]) -> list[str]:
    """Names without the words that all begin or end with.

    >>> _short_names(["model.layers.0.q.lora", "model.layers.1.v.lora"])
    ['0.q', '1.v']
    """
    if len(names) == 1:
        return names
    paths = [name.split(".") for name in names]
    while _agree_at(0, paths):
        paths = [path[1:] for path in paths]
    while _agree_at(-1, paths):
        paths = [path[:-1] for path in paths]
    return [".".join(path) for path in paths]


def _agree_at(place: int, paths: list[list[str]]) -> bool:
    """Whether all paths have the same word at a place, and others besides."""
    if any(len(path) == 1 for path in paths):
        return False
    words = {path[place] for path in paths}
    return len(words) == 1
