"""The unit and the order of boxes, `data.box_format`, as far as their numbers prove them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_vlm.data.conversation import Box, Conversation, Point, Region
from lightning_vlm.data.images import image_size
from lightning_vlm.errors import DataError
from lightning_vlm.start.peek import Peek

_UNITS = ("fractions", "pixels", "0-1000", "0-100")
"""Those that are tried. What fits 0-999 fits 0-1000 too, and differs by a thousandth."""
_ORDERS = ("xyxy", "xywh")
"""Those that are tried: hardly any data has y first, and no number would show it."""
_MANY = 20
"""So many boxes all in one corner are no chance."""
_CORNER = 0.5
"""The share of a picture that is a corner of it."""
_FEW = 0.05
"""The share of boxes that may be wrong in the right format: data has mistakes."""


class BoxUnit(NamedTuple):
    """What is known of boxes without a unit.

    Args:
        format: For `data.box_format`; None if the numbers leave a choice.
        fits: Every format that the numbers fit.
        why: What they prove.
    """

    format: str | None
    fits: tuple[str, ...]
    why: str


def names_no_unit(errors: Sequence[DataError]) -> bool:
    """Whether rows can't be read because nothing says what the numbers of their boxes mean."""
    return any("whose unit" in error.found for error in errors)


def find_box_unit(read: Callable[[str], Peek]) -> BoxUnit:
    """Try each format, and see in which boxes lie within their pictures.

    Args:
        read: Reads the first rows with a `data.box_format`, pictures looked up.
    """
    plain = read("fractions")
    needs_order = names_no_unit(plain.errors)
    formats = [f"{unit} {order}" for unit in _UNITS for order in _ORDERS] if needs_order else list(_UNITS)
    peeks: dict[str, Peek] = {}
    faults: dict[str, float] = {}
    for name in formats:
        tried = peeks[name] = plain if name == "fractions" else read(name)
        bad = sum(_is_about_place(error) for error in tried.errors)
        good = sum(_has_located(conversation) for conversation in tried.conversations)
        faults[name] = bad / max(1, bad + good)
    fits = tuple(name for name, share in faults.items() if share <= _FEW)
    fractions = tuple(name for name in fits if name.startswith("fractions"))
    why = "in every other format boxes would be inverted or lie outside their pictures"
    if fractions:  # in any other unit, such boxes would be smaller than a pixel
        fits, why = fractions, "all numbers lie between 0 and 1"
    spread = tuple(name for name in fits if not _in_one_corner(peeks[name].conversations))
    if len(fits) > 1 and spread and spread != fits:
        fits, why = (
            spread,
            "in any other format all boxes would lie in one corner of their pictures, or beyond",
        )
    if len(fits) == 1:
        return BoxUnit(fits[0], fits, why)
    if not fits:
        return BoxUnit(None, (), "the numbers fit no format: too many boxes lie outside their pictures")
    return BoxUnit(None, fits, f"the numbers fit {' and '.join(fits)}")


def _in_one_corner(conversations: Sequence[Conversation]) -> bool:
    """Whether the right and lower edges of many boxes leave half of all pictures empty."""
    boxes = right = lower = 0.0
    for conversation in conversations:
        for box in _boxes(conversation):
            width, height = _edges(conversation, box)
            boxes += 1
            right, lower = max(right, box.xyxy[2] / width), max(lower, box.xyxy[3] / height)
    return boxes >= _MANY and right * lower <= _CORNER


def _edges(conversation: Conversation, box: Box) -> tuple[float, float]:
    """The largest numbers that a box may have."""
    if not box.pixels:
        return 1.0, 1.0
    return image_size(conversation.images[box.image or 0], conversation.source, "image")


def _is_about_place(error: DataError) -> bool:
    """Whether an error says that a box lies outside its picture, or is inverted."""
    return (
        error.found.startswith(("the box [", "the point [", "the region ["))
        and "pixels, but" not in error.found
    )


def _boxes(conversation: Conversation) -> list[Box]:
    return [part for turn in conversation.messages for part in turn.parts if isinstance(part, Box)]


def _has_located(conversation: Conversation) -> bool:
    parts = (part for turn in conversation.messages for part in turn.parts)
    return any(isinstance(part, Box | Point | Region) for part in parts)
