"""The boxes that stand beside the texts of a row in `objects`, as ms-swift writes them."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lightning_vlm.data.conversation import Located, Part, Text
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.fields import check_keys, number_of, text_of
from lightning_vlm.data.read.located import located
from lightning_vlm.data.read.markup.json_boxes import START
from lightning_vlm.data.read.markup.scan import parts_in
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.turns import Turn
from lightning_vlm.data.read.words import describe

BOX, REF = "<bbox>", "<ref-object>"
"""What stands for the next box, and for the next name."""
_PLACES = re.compile(rf"(?:({REF})\s*)?((?:{BOX})+)|{REF}")
_IN_JSON = re.compile(rf'":\s*(?:\[\s*)?{BOX}')
_IS_TEXT = "'<bbox>' and '<ref-object>' are ordinary text in rows without 'objects'"
_TYPES = {"real": BoxFormat("pixels"), "norm1": BoxFormat("fractions"), "norm1000": BoxFormat("0-1000")}


class RowObjects:
    """The boxes and names of a row, given out in their order.

    `objects` has `bbox`, a list of boxes of four numbers, points of two, or outlines of more; `ref`, a list
    of names; `bbox_type`, `real` (pixels, if nothing is said), `norm1` (fractions) or `norm1000`; and
    `image_id`, the picture of each box, the first one if nothing is said. A name directly before its box is
    its label.

    Args:
        row: The row.
        turns: Its turns.
        has_pictures: Whether there are pictures that `image_id` can name.
        at: Where the row stands.

    Raises:
        DataError: The turns have places for boxes, and `objects` isn't what it should be.
    """

    def __init__(self, row: dict[str, Any], turns: list[Turn], has_pictures: bool, at: Location) -> None:
        self._at = at / "objects"
        self._boxes: list[Located] = []
        self._names: list[str] = []
        self._placed = self._named = 0
        text = str([turn.content for turn in turns])
        self.is_used = "objects" in row and (BOX in text or REF in text)
        """Whether the row has places for them."""
        if self.is_used:
            self._read(row["objects"], has_pictures)
        elif "objects" in row:
            at.reading.notes.ignore("objects")
        elif BOX in text or REF in text:
            at.note(_IS_TEXT)

    def parts(self, text: str, at: Location) -> Iterator[Part]:
        """The parts of a text, with the next boxes and names where their places are."""
        if not self.is_used or not (BOX in text or REF in text):
            yield from parts_in(text, at)
            return
        if _IN_JSON.search(text) and re.search(START, text):
            yield from self._parts_of_json(text, at)
            return
        done = 0
        for match in _PLACES.finditer(text):
            if match.start() > done:
                yield from parts_in(text[done : match.start()], at)
            done = match.end()
            if match[2] is None:
                yield Text(self._name())
                continue
            label = self._name() if match[1] else None
            for _ in range(match[2].count(BOX)):
                yield _labelled(self._box(), label)
        if done < len(text):
            yield from parts_in(text[done:], at)

    def check_all_placed(self) -> None:
        """Raise unless each box and each name has its place."""
        if not self.is_used:
            return
        counts = [("bbox", BOX, len(self._boxes), self._placed), ("ref", REF, len(self._names), self._named)]
        for key, place, given, placed in counts:
            if given != placed:
                found = f"{given} of them and {placed} '{place}' in the conversation"
                raise (self._at / key).error(found, f"one for each '{place}'")

    def _read(self, objects: Any, has_pictures: bool) -> None:
        at = self._at
        if isinstance(objects, str):  # a table holds it as JSON
            with contextlib.suppress(ValueError, RecursionError):
                objects = json.loads(objects)
        check_keys(objects, at, required=[], optional=["bbox", "ref", "bbox_type", "image_id"])
        names, boxes = _list(objects, "ref", at), _list(objects, "bbox", at)
        numbers = _list(objects, "image_id", at)
        self._names = [text_of(name, at / "ref" / index) for index, name in enumerate(names)]
        kind = objects.get("bbox_type") or "real"
        if not isinstance(kind, str) or kind not in _TYPES:
            raise (at / "bbox_type").wrong(kind, "'real' (pixels), 'norm1' (fractions) or 'norm1000'")
        for index, box in enumerate(boxes):
            number = numbers[index] if index < len(numbers) else 0
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise (at / "image_id" / index).wrong(number, "the number of a picture, counted from 0")
            image = number if has_pictures else None
            self._boxes.append(_box(box, image, _TYPES[kind], at / "bbox" / index))

    def _parts_of_json(self, text: str, at: Location) -> Iterator[Part]:
        """Of a text that is JSON with places for boxes in it: each gets a text by which it is known."""
        known: dict[str, Located] = {}

        def named(match: re.Match[str]) -> str:
            if match[0] == REF:
                return json.dumps(self._name(), ensure_ascii=False)[1:-1]
            key = f"\ue000{len(known)}"
            known[key] = self._box()
            return f'"{key}"'

        spelled = re.sub(f"{BOX}|{REF}", named, text)
        parts = parts_in(spelled, at, known)
        words = "".join(part.text for part in parts if isinstance(part, Text))
        if "\ue000" in words:
            expected = "it as 'bbox_2d' or 'point_2d' of an object with a label, in a list"
            raise at.error(f"'{BOX}' at another place in JSON", expected)
        yield from parts

    def _box(self) -> Located:
        self._placed += 1
        return self._boxes[self._placed - 1] if self._placed <= len(self._boxes) else located((0.0, 0.0))

    def _name(self) -> str:
        self._named += 1
        return self._names[self._named - 1] if self._named <= len(self._names) else ""


def _list(objects: dict[str, Any], key: str, at: Location) -> list[Any]:
    value = objects.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise (at / key).wrong(value, "a list")
    return value


def _box(value: Any, image: int | None, format: BoxFormat, at: Location) -> Located:
    if not isinstance(value, list) or len(value) < 2 or len(value) % 2:
        found = f"{len(value)} numbers" if isinstance(value, list) else describe(value)
        raise at.error(found, "x1, y1, x2, y2 of a box, x, y of a point, or more pairs of an outline")
    numbers = [number_of(number, at / index) for index, number in enumerate(value)]
    return located(format.numbers(numbers), None, image, format.pixels)


def _labelled(part: Located, label: str | None) -> Located:
    return part if label is None else replace(part, label=label)
