"""Boxes and points in JSON, as Qwen2.5-VL and Qwen3-VL answer, and as Gemma does (`box_2d`)."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Located
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.fields import is_number
from lightning_vlm.data.read.markup.shapes import Piece, Shape, located_shapes
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.words import describe, printable, quote

_BOXES = ("bbox_2d", "bbox", "box_2d")
_POINTS = ("point_2d",)
_LABELS = ("label", "text_content", "caption", "category", "ref")
_KEYS = re.compile(rf'"(?:{"|".join((*_BOXES, *_POINTS))})"\s*:\s*[\["\ue000]')
START = r"(?:```(?:json)?\s*)?[\[{](?=\s*[\[{\"])"
"""How JSON begins in a text, as a pattern."""
_FENCE = re.compile(r"```(?:json)?\s*")
_END = re.compile(r"\s*```")
_OWN = {"box_2d": BoxFormat("0-1000", "yxyx")}
"""Keys whose numbers have an order and a unit of their own: those of Gemma and Gemini."""
_STAYS = "JSON with '{}' that isn't a list of objects stays words"
_DECODER = json.JSONDecoder()


class Read(NamedTuple):
    """What JSON in a text is.

    Args:
        stop: Behind it.
        piece: The boxes in it; None where it stays words.
    """

    stop: int
    piece: Piece | None


def may_hold_boxes(text: str) -> bool:
    """Whether a text has a key of boxes in JSON; if not, there is no need to read JSON in it."""
    return _KEYS.search(text) is not None


def read_json(text: str, start: int, at: Location, known: Mapping[str, Located]) -> Read | None:
    """The boxes of JSON in a text; None where there is no JSON.

    Args:
        text: Of a turn.
        start: Where JSON may begin, or the fence before it.
        at: Where the text stands.
        known: Boxes that stand beside the text, by the text that stands for each.

    Raises:
        DataError: JSON of boxes with further keys, which would be lost, or with no place of four numbers.
    """
    fence = _FENCE.match(text, start)
    begin = fence.end() if fence else start
    try:
        value, stop = _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    end = _END.match(text, stop)
    if fence and end:
        stop = end.end()
    else:
        start = begin
    items = value if isinstance(value, list) else [value]
    are_objects = bool(items) and all(isinstance(item, dict) for item in items)
    if not are_objects or not any(_key_of(item) for item in items):
        inner = _KEYS.search(text, begin, stop)
        if inner:
            at.note(_STAYS.format(inner[0].split('"')[1]))
        return Read(stop, None)
    parts: list[Located] = []
    for item in items:
        parts += _parts(item, text[start:stop], at, known)
    return Read(stop, Piece(start, stop, parts))


def _key_of(item: dict[str, Any]) -> str | None:
    return next((name for name in (*_BOXES, *_POINTS) if name in item), None)


def _parts(item: dict[str, Any], written: str, at: Location, known: Mapping[str, Located]) -> list[Located]:
    key = _key_of(item)
    if key is None:
        raise at.error(
            describe(item), "the key 'bbox_2d' or 'point_2d' in each object beside one that has it"
        )
    labels = [name for name in _LABELS if name in item]
    others = [name for name in item if name not in (key, "image", *labels[:1])]
    if others:
        found = f"the key '{printable(others[0])}' beside '{key}' in JSON"
        expected = f"a label alone ({quote(_LABELS)}), as boxes are written again and the rest would be lost"
        raise at.error(found, f"{expected}; data.box_format: text leaves texts as they are")
    label = item[labels[0]] if labels else None
    if label is not None and not isinstance(label, str):
        raise at.wrong(label, f"a text as '{labels[0]}' of a box in JSON")
    image = item.get("image")
    if "image" in item and (not isinstance(image, int) or isinstance(image, bool) or image < 1):
        raise at.wrong(image, "the number of a picture from 1 as 'image' of a box in JSON")
    image = None if image is None else image - 1
    value = item[key]
    if isinstance(value, str) and value in known:
        return [_labelled(known[value], label)]
    wanted = 2 if key in _POINTS else 4
    several = value if _are_lists(value) else [value]
    shapes = []
    for numbers in several:
        if not isinstance(numbers, list) or len(numbers) != wanted or not all(map(_is_number, numbers)):
            raise at.wrong(numbers, f"{wanted} numbers as '{key}' in JSON")
        shapes.append(Shape(tuple(map(float, numbers)), label, image=image))
    return located_shapes(shapes, written, at, _OWN.get(key))


def _labelled(part: Located, label: str | None) -> Located:
    return part if label is None else replace(part, label=label)


def _are_lists(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, list) for item in value)


def _is_number(value: Any) -> bool:
    """Whether a value is a number; infinite ones too, which are refused with the others outside a picture."""
    return is_number(value) or isinstance(value, float)
