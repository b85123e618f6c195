"""Boxes and regions as masks, and back: the outline of a mask."""

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_vlm.data.parts import Box, Located, Point


def rasterize(item: Located, size: tuple[int, int]) -> np.ndarray:
    """A box or a region as a mask: the pixels whose centres lie in it, by the even-odd rule.

    Args:
        item: In fractions of the picture. A point has no area.
        size: Width and height of the mask.

    Returns:
        Array of shape [height, width], bool.

    >>> rasterize(Box((0.25, 0, 0.75, 0.5)), (4, 2)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    width, height = size
    if isinstance(item, Point):
        return np.zeros((height, width), bool)
    numbers = item.numbers
    if isinstance(item, Box):
        x1, y1, x2, y2 = item.xyxy
        numbers = (x1, y1, x2, y1, x2, y2, x1, y2)
    return filled(numbers, size)


def filled(outline: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """As `rasterize`, of an outline x1, y1, x2, y2, ... that may reach beyond 0..1."""
    width, height = size
    across = np.array(outline[0::2], float) * width
    down = np.array(outline[1::2], float) * height
    centres = np.arange(height) + 0.5
    # In each row a pixel is inside if an odd number of edges is crossed to the left of its centre.
    crossings = np.zeros((height, width + 1), np.int32)
    edges = zip(across, down, np.roll(across, -1), np.roll(down, -1), strict=True)
    for ax, ay, bx, by in edges:
        (rows,) = np.nonzero((ay > centres) != (by > centres))
        places = ax + (centres[rows] - ay) / (by - ay) * (bx - ax)
        columns = np.clip(np.ceil(places - 0.5), 0, width).astype(np.int64)
        crossings[rows, columns] += 1
    return crossings[:, :width].cumsum(1) % 2 == 1


def outline_of(mask: np.ndarray) -> tuple[float, ...] | None:
    """The outline of a mask, along the edges of its pixels: one, whatever holes and pieces the mask has.

    Pieces are joined by lines that are drawn there and back, which changes nothing by the even-odd rule, so
    that `filled` gives the same mask again.

    Args:
        mask: Array of shape [height, width], bool.

    Returns:
        x1, y1, x2, y2, ... in fractions of the mask; None for an empty one.

    >>> outline_of(np.array([[0, 1], [0, 1]], bool))
    (0.5, 0.0, 1.0, 0.0, 1.0, 1.0, 0.5, 1.0)
    """
    loops = _loops(mask)
    if not loops:
        return None
    corners = list(loops[0])
    for loop in loops[1:]:
        corners += [loops[0][0], *loop, loop[0]]
    if len(loops) > 1:
        corners.append(loops[0][0])
    height, width = mask.shape
    return tuple(number for x, y in corners for number in (x / width, y / height))


_Corner = tuple[int, int]


def _loops(mask: np.ndarray) -> list[list[_Corner]]:
    """The edges of a mask as closed loops of corners (x, y), with what is inside on their right."""
    padded = np.pad(mask.astype(np.int8), 1)
    edges: dict[_Corner, list[_Corner]] = {}

    def add(start: _Corner, stop: _Corner) -> None:
        edges.setdefault(start, []).append(stop)

    for y, x in np.argwhere(np.diff(padded[:, 1:-1], axis=0)).tolist():
        add(*(((x, y), (x + 1, y)) if mask[y : y + 1, x].any() else ((x + 1, y), (x, y))))
    for y, x in np.argwhere(np.diff(padded[1:-1], axis=1)).tolist():
        add(*(((x, y + 1), (x, y)) if mask[y, x : x + 1].any() else ((x, y), (x, y + 1))))
    loops = []
    while edges:
        start = min(edges, key=lambda corner: (corner[1], corner[0]))
        loops.append(_corners(_walk(edges, start)))
    return loops


def _walk(edges: Mapping[_Corner, list[_Corner]], start: _Corner) -> list[_Corner]:
    """Follow edges from a corner until back there, and take them away."""
    remaining: dict[_Corner, list[_Corner]] = edges  # type: ignore[assignment]
    path = [start]
    while len(path) == 1 or path[-1] != start:
        here = path[-1]
        path.append(remaining[here].pop())
        if not remaining[here]:
            del remaining[here]
    return path[:-1]


def _corners(path: Sequence[_Corner]) -> list[_Corner]:
    """Only the corners at which a closed path turns."""
    turns = []
    for place, (x, y) in enumerate(path):
        (px, py), (nx, ny) = path[place - 1], path[(place + 1) % len(path)]
        if (x - px) * (ny - y) != (y - py) * (nx - x):
            turns.append((x, y))
    return turns
