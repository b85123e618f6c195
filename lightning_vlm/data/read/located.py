"""Boxes, points and regions as parts of a content, and as bare numbers."""

from collections.abc import Sequence
from typing import Any

from lightning_vlm.data.conversation import Box, Located, Point, Region
from lightning_vlm.data.read.fields import number_of, text_of
from lightning_vlm.data.read.reading import Location

KINDS = ("box", "point", "region")
"""The types of parts that lie in a picture. The numbers stand under the key of the same name."""
OPTIONS = ("label", "image", "pixels")
"""Further keys of such a part."""
_NUMBERS = {
    "box": "four numbers x1, y1, x2, y2",
    "point": "two numbers x, y",
    "region": "six numbers x1, y1, x2, y2, x3, y3 or more, an even number of them",
}


def located_part(kind: str, part: dict[str, Any], at: Location) -> Located:
    """A box, a point or a region from a part whose keys are known.

    Raises:
        DataError: A value of the wrong type. Whether the numbers lie in a picture isn't asked here.
    """
    numbers = numbers_of(part[kind], kind, at / kind)
    label = text_of(part["label"], at / "label") if "label" in part else None
    pixels = part.get("pixels", False)
    if not isinstance(pixels, bool):
        raise (at / "pixels").wrong(pixels, "true or false")
    image = part.get("image")
    if "image" in part and not _is_place(image):
        raise (at / "image").wrong(image, "the number of a picture of this sample, counted from 0")
    return located(numbers, label, image, pixels, kind == "region")


def numbers_of(value: Any, kind: str, at: Location) -> tuple[float, ...]:
    """As many numbers as a kind of part needs; an outline may also be a list of pairs."""
    expected = _NUMBERS[kind]
    if kind == "region" and isinstance(value, list) and all(_is_pair(item) for item in value):
        value = [number for pair in value for number in pair]
    if not isinstance(value, list):
        raise at.wrong(value, expected)
    length = len(value)
    fits = {"box": length == 4, "point": length == 2, "region": length >= 6 and length % 2 == 0}
    if not fits[kind]:
        raise at.wrong(value, expected)
    return tuple(number_of(number, at / index) for index, number in enumerate(value))


def located(
    numbers: Sequence[float],
    label: str | None = None,
    image: int | None = None,
    pixels: bool = False,
    outline: bool = False,
) -> Located:
    """What some numbers are: two a point, four a box, more of them an outline.

    Args:
        numbers: x and y in turn, an even number of them.
        label: What is there.
        image: The number of its picture.
        pixels: Whether the numbers are pixels.
        outline: Whether they are an outline in any case.

    >>> located((0.1, 0.2))
    Point(xy=(0.1, 0.2), label=None, image=None, pixels=False)
    """
    if outline or len(numbers) > 4:
        return Region(tuple(numbers), label, image, pixels)
    if len(numbers) == 2:
        x, y = numbers
        return Point((x, y), label, image, pixels)
    x1, y1, x2, y2 = numbers
    return Box((x1, y1, x2, y2), label, image, pixels)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
