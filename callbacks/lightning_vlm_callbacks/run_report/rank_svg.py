"""The rank of each layer over steps, as inline SVG."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from lightning_vlm_callbacks.run_report.charts import RankMap
from lightning_vlm_callbacks.run_report.svg import BOTTOM, LEFT, RIGHT, TOP, element, picture, ticks

__all__ = ["rank_svg"]

COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From rank 0 to the highest: those of matplotlib's viridis."""
NO_ADAPTER = "#e8e8e8"


def rank_svg(ranks: RankMap, width: int = 900) -> str:
    """A row for each layer, coloured by its rank from change to change."""
    names = _short_names(list(ranks.ranks))
    row = max(4, min(18, 700 // len(names)))
    has_names = row >= 9
    left = 10 + 6.2 * max(map(len, names)) if has_names else LEFT
    height = TOP + row * len(names) + BOTTOM
    first, last = ranks.edges[0], ranks.edges[-1]
    highest = max(max(values) for values in ranks.ranks.values())

    def x(step: float) -> float:
        return round(left + (step - first) / max(last - first, 1) * (width - RIGHT - left), 1)

    shapes = []
    for place, (name, whole_name) in enumerate(zip(names, ranks.ranks, strict=True)):
        top = TOP + row * place
        if has_names:
            shapes.append(element("text", escape(name), x=left - 5, y=top + row - 3, text_anchor="end"))
        for start, end, rank in _stretches(ranks.edges, ranks.ranks[whole_name]):
            length, colour = round(x(end) - x(start), 1), _colour(rank, highest)
            title = f"{whole_name}: rank {rank} from step {start:,} to {end:,}"
            cell = element("rect", title=title, x=x(start), y=top, width=length, height=row, fill=colour)
            shapes.append(cell)
            if row >= 12 and length > 24:
                ink = "fill:#fff" if 0 < rank < 0.6 * highest else "fill:#222"
                shapes.append(element("text", str(rank), x=x(start) + 4, y=top + row - 4, style=ink))
    for step in ticks(first, last, 8):
        shapes.append(element("text", f"{step:,.0f}", x=x(step), y=height - 8, text_anchor="middle"))
    return picture(width, height, shapes)


def _stretches(edges: Sequence[int], values: Sequence[int]) -> list[tuple[int, int, int]]:
    """Start, end and value of each stretch in which the value doesn't change.

    >>> _stretches([0, 10, 20, 30], [8, 8, 12])
    [(0, 20, 8), (20, 30, 12)]
    """
    found: list[tuple[int, int, int]] = []
    for (start, end), value in zip(pairwise(edges), values, strict=True):
        if found and found[-1][2] == value:
            start = found.pop()[0]
        found.append((start, end, value))
    return found


def _colour(rank: int, highest: int) -> str:
    """A colour between those of `COLOURS`."""
    if rank == 0:
        return NO_ADAPTER
    place = rank / highest * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    share = place - index
    mixed = [round(a + share * (b - a)) for a, b in zip(COLOURS[index], COLOURS[index + 1], strict=True)]
    return f"rgb({','.join(map(str, mixed))})"


def _short_names(names: list[str]) -> list[str]:
    """Names without the words that all begin or end with.

    >>> _short_names(["model.layers.0.q.lora", "model.layers.1.v.lora"])
    ['0.q', '1.v']
    """
    words = [name.split(".") for name in names]
    if len(names) == 1:
        return names
    while min(map(len, words)) > 1 and len({some[0] for some in words}) == 1:
        words = [some[1:] for some in words]
    while min(map(len, words)) > 1 and len({some[-1] for some in words}) == 1:
        words = [some[:-1] for some in words]
    return [".".join(some) for some in words]
