"""Boxes within their pictures: what reaches beyond is refused, or cut off where `data.bad_boxes` says so."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from lightning_vlm.data.conversation import Box, Image, Located, Part, Point, Region
from lightning_vlm.data.images import image_size
from lightning_vlm.data.read.located import located
from lightning_vlm.data.read.reading import Location

OnBadBox: TypeAlias = Literal["error", "clip"]
Placed: TypeAlias = tuple[Part, Location]
"""A part of a content, and where it stands in its row."""

CUT = "what reaches beyond its picture was cut off at the edge (data.bad_boxes: clip)"
_TURNED = "corners in the wrong order were exchanged (data.bad_boxes: clip)"
_LAST = "in samples of several pictures, boxes without 'image' lie in the last picture before them"
LATER = (
    "boxes in pixels are compared with their pictures' sizes when samples are rendered, not now, because the "
    "pictures aren't files"
)
_ROUNDING = 0.05
"""By how many pixels rounded numbers may reach beyond a picture: those of COCO have two decimals."""
_FIX = "; data.bad_boxes: clip cuts off what reaches beyond"


def within_pictures(
    contents: Sequence[Sequence[Placed]], sizes: Mapping[int, tuple[float, float]] | None = None
) -> list[tuple[Part, ...]]:
    """The parts of a conversation's turns, with what lies in pictures checked, or moved into them.

    The size of a picture is only looked up where a box is in pixels, in the head of its file.

    Args:
        contents: The parts of each turn.
        sizes: Widths and heights that are known already, by the number of the picture.

    Raises:
        DataError: A box of a picture that isn't there, or outside its picture, inverted, without area or
            not of finite numbers; or a picture that can't be opened.
    """
    placed = [one for parts in contents for one in parts if isinstance(one[0], Image)]
    pictures = _Pictures(placed, sizes or {})
    before = 0
    several = len(pictures) > 1
    settled: list[tuple[Part, ...]] = []
    for parts in contents:
        done: list[Part] = []
        for part, at in parts:
            before += isinstance(part, Image)
            if isinstance(part, Box | Point | Region):
                if several and part.image is None:
                    at.tally(_LAST, "boxes")
                part = _within(part, pictures.edges(part, before, at), at)
            done.append(part)
        settled.append(tuple(done))
    return settled


class _Pictures:
    """The pictures of a conversation, and their sizes once these were asked for."""

    def __init__(self, placed: list[Placed], sizes: Mapping[int, tuple[float, float]]) -> None:
        self._placed = placed
        self._sizes = dict(sizes)

    def __len__(self) -> int:
        return len(self._placed)

    def edges(self, part: Located, before: int, at: Location) -> tuple[float, float]:
        """The largest x and y of what lies in a picture; infinite where the size isn't known yet.

        Args:
            part: A box, a point or a region.
            before: How many pictures stand before it.
            at: Where it stands.
        """
        count = len(self._placed)
        if part.image is not None and part.image >= count:
            expected = f"the number of a picture, counted from 0, of the {count} in this sample"
            raise (at / "image").wrong(part.image, expected, "box_without_picture")
        if not part.pixels:
            return 1.0, 1.0
        number = part.image if part.image is not None else max(before - 1, 0)
        if not count:
            raise at.error(
                f"{_name(part)} in pixels, but no picture",
                "a picture in the sample, or fractions",
                "box_without_picture",
            )
        if number not in self._sizes:
            self._sizes[number] = self._size(number, at)
        return self._sizes[number]

    def _size(self, number: int, at: Location) -> tuple[float, float]:
        image, at_image = self._placed[number]
        assert isinstance(image, Image)
        reading = at.reading
        if reading.opening and image.path is None and not image.data:
            at.note(LATER)
            return math.inf, math.inf
        return image_size(image, at_image.source, at_image.key)


def _within(part: Located, edges: tuple[float, float], at: Location) -> Located:
    numbers = part.numbers
    found = f"{_name(part)} {list(numbers)}"
    clips = at.reading.bad_boxes == "clip"
    if not all(map(math.isfinite, numbers)):
        raise at.error(found, f"finite numbers, {_range(part, edges)}", "box_outside")
    if part.pixels and not isinstance(part, Point) and _are_fractions(numbers):
        expected = "numbers of pixels; of fractions, say nothing of pixels (or data.box_format: fractions)"
        raise at.error(f"{found} in pixels, less than one", expected)
    if isinstance(part, Box):
        x1, y1, x2, y2 = numbers
        if x1 > x2 or y1 > y2:
            if not clips:
                expected = f"x1 <= x2 and y1 <= y2, {_range(part, edges)}"
                expected += "; data.bad_boxes: clip exchanges the corners"
                raise at.error(found, expected, "box_inverted")
            at.tally(_TURNED, "boxes")
            numbers = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    inside = tuple(min(max(value, 0.0), edges[place % 2]) for place, value in enumerate(numbers))
    beyond = _beyond(numbers, inside, edges)
    slack = _ROUNDING / min(1.0 if math.isinf(edge) else edge for edge in edges) if part.pixels else 1e-6
    if beyond > slack and not (clips and (beyond <= 1 or math.isinf(edges[0]))):
        fix = "" if clips else _FIX
        raise at.error(found, f"numbers {_range(part, edges)}{fix}", "box_outside")
    if beyond > slack:
        at.tally(CUT, "boxes")
    if not _has_area(part, inside):
        expected = "a box or region with an area; leave it out, or write a point"
        raise at.error(found, expected, "box_without_area")
    if inside == numbers == part.numbers:
        return part
    return located(inside, part.label, part.image, part.pixels, isinstance(part, Region))


def _are_fractions(numbers: Sequence[float]) -> bool:
    """Whether numbers all lie within the first pixel, which nobody outlines."""
    return all(0 <= value <= 1 for value in numbers) and any(value % 1 for value in numbers)


def _beyond(numbers: Sequence[float], inside: Sequence[float], edges: tuple[float, float]) -> float:
    """By how much of a picture numbers reach beyond it; by how many pixels where its size isn't known."""
    whole = [1.0 if math.isinf(edge) else edge for edge in edges]
    distances = (abs(given - kept) for given, kept in zip(numbers, inside, strict=True))
    return max(distance / whole[place % 2] for place, distance in enumerate(distances))


def _has_area(part: Located, numbers: Sequence[float]) -> bool:
    """Whether something lies within a box or an outline."""
    if isinstance(part, Point):
        return True
    if isinstance(part, Box):
        x1, y1, x2, y2 = numbers
        return x1 < x2 and y1 < y2
    xs, ys = numbers[::2], numbers[1::2]
    following = zip((*xs[1:], xs[0]), (*ys[1:], ys[0]), strict=True)
    twice = sum(x * next_y - next_x * y for x, y, (next_x, next_y) in zip(xs, ys, following, strict=True))
    whole = (max(xs) - min(xs)) * (max(ys) - min(ys))
    return abs(twice) > 1e-9 * whole > 0


def _name(part: Located) -> str:
    return f"the {type(part).__name__.lower()}"


def _range(part: Located, edges: tuple[float, float]) -> str:
    if not part.pixels:
        return 'between 0 and 1 (divide pixels by the picture\'s width and height, or say "pixels": true)'
    width, height = edges
    if math.isinf(width):
        return "of pixels within the picture"
    return f"within the picture of {width:g}×{height:g} pixels"
