"""Areas of a picture as masks, and how two of them overlap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Located, Point

LONGEST = 2048
"""The longest side of a mask. Masks of larger pictures are made smaller, and their pixels count for more."""
UNKNOWN = (1000, 1000)
"""The size of a picture that isn't known."""


class Areas(NamedTuple):
    """How much of some pictures two answers cover, in pixels: what both do, and what either does."""

    both: float
    either: float


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
    across = np.array(numbers[0::2], float) * width
    down = np.array(numbers[1::2], float) * height
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


def overlap(found: Sequence[Located], right: Sequence[Located], views: Sequence[View]) -> Areas:
    """How much of the pictures is covered by what was found and by what is right, each taken together.

    Args:
        found: Boxes and regions; those without a picture lie in the first.
        right: Likewise.
        views: How large each picture is.
    """
    both = either = 0.0
    for image in sorted({item.image or 0 for item in (*found, *right)}):
        size = views[image].size if image < len(views) else UNKNOWN
        shrunk = min(1.0, LONGEST / max(size))
        width, height = (max(1, round(side * shrunk)) for side in size)
        one = _together(found, image, (width, height))
        other = _together(right, image, (width, height))
        pixel = size[0] * size[1] / (width * height)
        both += pixel * np.count_nonzero(one & other)
        either += pixel * np.count_nonzero(one | other)
    return Areas(both, either)


def _together(items: Sequence[Located], image: int, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    for item in items:
        if (item.image or 0) == image:
            mask |= rasterize(item, size)
    return mask
