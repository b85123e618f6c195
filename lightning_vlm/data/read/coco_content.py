"""What is in a file of COCO: pictures, annotations and categories, checked and put together."""

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_vlm.data.read.data_file import decode, open_file
from lightning_vlm.data.read.fields import is_number
from lightning_vlm.data.read.limits import check_whole, values_of
from lightning_vlm.data.read.words import describe
from lightning_vlm.errors import DataError

KEYS = ("images", "annotations", "categories")
"""The lists that such a file has."""
_LAYOUT = "an object with the lists 'images', 'annotations' and 'categories', as COCO has it"
_CROWD = "annotations of crowds are ignored ('iscrowd')"
_FLAT = "boxes without width or height were left out (bad_boxes: clip)"


class CocoItem(NamedTuple):
    """An annotation: its place in the file, the name of its category, and its numbers."""

    place: int
    label: str
    corner: tuple[float, float]
    """Its smallest y and x."""
    bbox: list[float]
    outlines: list[list[float]]


class CocoContent:
    """What is in a file of COCO, checked.

    Args:
        path: The file.
        name: What errors call it.
        regions: Whether outlines are read.
        clips: Whether boxes without area are left out.
    """

    def __init__(self, path: str, name: str, regions: bool, clips: bool) -> None:
        self._name = name
        self._crowds: dict[int, list[str]] = {}
        self.empty = 0
        """How many pictures without annotations were left out so far."""
        self._regions = regions
        self._clips = clips
        with open_file(path, name, "COCO's layout") as file:
            check_whole(os.fstat(file.fileno()).st_size, name)
            data = file.read()
        check_whole(len(data), name, values_of(data))
        text = decode(data, name)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(name, "", f"broken JSON ({error})", _LAYOUT) from None
        if not isinstance(content, dict):
            raise DataError(name, "", describe(content), _LAYOUT)
        for key in KEYS:
            if not isinstance(content.get(key), list):
                raise DataError(name, key, describe(content.get(key)), _LAYOUT)
        self._images: list[Any] = content["images"]
        self._annotations: list[Any] = content["annotations"]
        self._names = {
            self._number(item, "id", "categories", place): self._text(item, "name", "categories", place)
            for place, item in enumerate(content["categories"])
        }

    def rows(self, by: str, keep_empty: bool) -> Iterator[dict[str, Any]]:
        """A row for each picture, or for each category in it."""
        of_pictures = self._by_picture()
        for place, (items, notes, fault) in enumerate(of_pictures):
            image = self._images[place]
            row = {
                "place": place,
                "file_name": image.get("file_name"),
                "size": [image.get("width"), image.get("height")],
                "categories": list(self._names.values()),
                "asked": None,
                "items": sorted(items, key=_top_left),
                "notes": notes,
                "there": sorted({item.label for item in items} | {*self._crowds.get(image["id"], [])}),
            }
            if fault:
                yield {"place": place, "fault": fault}
            elif by == "category" and items:
                for label in sorted({item.label for item in items}):
                    of_label = [item for item in row["items"] if item.label == label]
                    yield row | {"asked": label, "items": of_label, "notes": notes}
                    notes = []
            elif items or (keep_empty and not row["there"]):
                yield row
            else:
                self.empty += 1

    def _by_picture(self) -> list[tuple[list[CocoItem], list[str], list[str]]]:
        """The annotations of each picture, what is to be said of them, and the first fault."""
        places: dict[int, int] = {}
        for place, image in enumerate(self._images):
            number = self._number(image, "id", "images", place)
            if number in places:
                key = f"images[{place}].id"
                raise DataError(
                    self._name, key, f"{number}, which images[{places[number]}] has", "another id"
                )
            places[number] = place
        found: list[tuple[list[CocoItem], list[str], list[str]]] = [([], [], []) for _ in self._images]
        for place, annotation in enumerate(self._annotations):
            number = self._number(annotation, "image_id", "annotations", place)
            if number not in places:
                key = f"annotations[{place}].image_id"
                raise DataError(self._name, key, str(number), "the id of one of the 'images'")
            items, notes, fault = found[places[number]]
            try:
                item = self._item(annotation, place, notes)
            except DataError as error:
                fault[:] = fault or [error.key, error.found, error.expected]
            else:
                items += [] if item is None else [item]
        return found

    def _item(self, annotation: dict[str, Any], place: int, notes: list[str]) -> CocoItem | None:
        key = f"annotations[{place}]"
        if annotation.get("iscrowd"):
            notes.append(_CROWD)
            category = annotation.get("category_id")
            if isinstance(category, int) and category in self._names:
                self._crowds.setdefault(annotation["image_id"], []).append(self._names[category])
            return None
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in self._names:
            expected = "the id of one of the 'categories'"
            raise DataError(self._name, f"{key}.category_id", describe(category), expected)
        name = self._names[category]
        if self._regions:
            outlines = self._outlines(annotation.get("segmentation"), f"{key}.segmentation")
            corner = min(outlines[0][1::2]), min(outlines[0][::2])
            return CocoItem(place, name, corner, [], outlines)
        bbox: Any = annotation.get("bbox")
        self._check(bbox, 4, f"{key}.bbox", "four numbers x, y, width, height")
        x, y, width, height = bbox
        if self._clips and not (width > 0 and height > 0):
            notes.append(_FLAT)
            return None
        return CocoItem(place, name, (y, x), bbox, [])

    def _outlines(self, value: Any, key: str) -> list[list[float]]:
        expected = "a list of outlines x1, y1, x2, y2, x3, y3, ... (masks in RLE have no outline)"
        if not isinstance(value, list) or not value:
            raise DataError(self._name, key, describe(value), expected)
        for number, outline in enumerate(value):
            self._check(outline, 0, f"{key}[{number}]", expected)
        return value

    def _check(self, value: Any, count: int, key: str, expected: str) -> None:
        """Raise unless a value is a list of so many finite numbers; 0 is an outline's, an even number."""
        fits = isinstance(value, list) and (
            len(value) == count if count else len(value) >= 6 and len(value) % 2 == 0
        )
        if not fits or not all(map(is_number, value)):
            raise DataError(self._name, key, describe(value), expected)

    def _number(self, item: Any, name: str, of: str, place: int) -> int:
        value = self._value(item, name, of, place)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(self._name, f"{of}[{place}].{name}", describe(value), "a whole number")
        return value

    def _text(self, item: Any, name: str, of: str, place: int) -> str:
        value = self._value(item, name, of, place)
        if not isinstance(value, str) or not value:
            raise DataError(self._name, f"{of}[{place}].{name}", describe(value), "a text")
        return value

    def _value(self, item: Any, name: str, of: str, place: int) -> Any:
        if not isinstance(item, dict):
            raise DataError(self._name, f"{of}[{place}]", describe(item), f"an object with the key '{name}'")
        return item.get(name)


def _top_left(item: CocoItem) -> tuple[float, float, str, int]:
    return *item.corner, item.label, item.place
