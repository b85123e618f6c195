"""What lies in a picture, in pixels of the picture as it came."""

from collections.abc import Sequence
from typing import Any

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located

_DECIMALS = 2


def in_pixels(item: Located, views: Sequence[View]) -> tuple[float, ...]:
    """The numbers of an item in pixels of its upright picture, as it came.

    Args:
        item: In fractions of its picture, with the number of that.
        views: Of all pictures of the conversation.

    >>> from lightning_vlm.data.parts import Point
    >>> in_pixels(Point((0.25, 0.5), image=0), [View((640, 480), (336, 336))])
    (160.0, 240.0)
    """
    sides = views[item.image or 0].size
    return tuple(round(value * sides[place % 2], _DECIMALS) for place, value in enumerate(item.numbers))


def as_row(item: Located, views: Sequence[View]) -> dict[str, Any]:
    """An item as a part of a line of JSON, as `read` takes it: in pixels, with its picture and its label.

    >>> from lightning_vlm.data.parts import Box
    >>> as_row(Box((0.25, 0.5, 1.0, 1.0), "dog", image=0), [View((640, 480), (336, 336))])
    {'type': 'box', 'box': [160.0, 240.0, 640.0, 480.0], 'pixels': True, 'image': 0, 'label': 'dog'}
    """
    kind = type(item).__name__.lower()
    row = {"type": kind, kind: list(in_pixels(item, views)), "pixels": True, "image": item.image or 0}
    return row if item.label is None else {**row, "label": item.label}
