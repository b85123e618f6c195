"""Areas of a picture as masks, and how two of them overlap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_vlm.data.boxes.areas import rasterize
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located

LONGEST = 2048
"""The longest side of a mask. Masks of larger pictures are made smaller, and their pixels count for more."""
UNKNOWN = (1000, 1000)
"""The size of a picture that isn't known."""


class Areas(NamedTuple):
    """How much of some pictures two answers cover, in pixels: what both do, and what either does."""

    both: float
    either: float


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
