"""The pictures that stand beside the text of a row, and the places in the text that they belong to."""

import re
from typing import Any

from lightning_vlm.data.conversation import Image, Part, Text
from lightning_vlm.data.read.fields import json_list, text_of
from lightning_vlm.data.read.pictures import picture_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.words import describe

COLUMNS = (
    "images",
    "image",
    "image_path",
    "image_paths",
    "image_url",
    "image_urls",
    "image_file",
    "img",
    "file_name",
)
"""Keys of a row that hold its pictures. The first that isn't empty is read."""
_PLACEHOLDER = re.compile(r"<image>(?:\r?\n)?")
_NEWLINE_BEFORE_LAST = re.compile(r"\r?\n((?:<image>(?:\r?\n)?)+)\Z")


def has_pictures(row: dict[str, Any]) -> bool:
    """Whether a row has a picture beside its text."""
    return any(name in row and not _is_empty(row[name]) for name in COLUMNS)


class RowPictures:
    """The pictures of a row, given out in their order.

    Args:
        row: The row.
        at: Where the row stands.
    """

    def __init__(self, row: dict[str, Any], at: Location) -> None:
        written = [name for name in COLUMNS if name in row]
        filled = [name for name in written if not _is_empty(row[name])]
        if "image" in filled and "images" in filled:
            raise (at / "images").error("both 'image' and 'images'", "one of them")
        key = (filled or written or ["image"])[0]
        self.has_column = bool(written)
        """Whether the row has a column for pictures, even if it is empty."""
        self.at = at / key
        self.images = _images_of(row.get(key), self.at)
        self.placed = 0
        """How many places for pictures there are so far."""

    def next(self) -> Part:
        """The next picture. Missing pictures are reported at the end, when their number is known."""
        self.placed += 1
        if self.placed > len(self.images):
            return Text("")
        return self.images[self.placed - 1]

    def with_index(self, index: int, at: Location) -> Part:
        """The picture that a part such as `{"type": "image", "index": 0}` asks for."""
        if not 0 <= index < len(self.images):
            found = f"{describe(index)}, but the row has {len(self.images)} picture(s)"
            raise at.error(found, "the index of a picture, counted from 0")
        self.placed += 1
        return self.images[index]

    def split(self, text: str, at: Location) -> list[Part]:
        """A text with the next pictures where `<image>` stands, without the newlines that set them apart.

        Those are one newline after each picture, and one before those at the end of the text.
        """
        text = _NEWLINE_BEFORE_LAST.sub(r"\1", text_of(text, at))
        first, *others = _PLACEHOLDER.split(text)
        parts: list[Part] = [Text(first)] if first else []
        for words in others:
            parts.append(self.next())
            if words:
                parts.append(Text(words))
        return parts

    def check_all_placed(self) -> None:
        """Raise unless each picture has one place."""
        if self.placed != len(self.images):
            found = f"{len(self.images)} picture(s) and {self.placed} place(s) for them in the conversation"
            expected = "an '<image>' where each picture stands, and a picture for each '<image>'"
            raise self.at.error(found, expected)


def _is_empty(value: Any) -> bool:
    """Whether a column holds no picture: null, an empty text or list, or a list of such."""
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, list):
        return all(_is_empty(item) for item in value)
    if isinstance(value, dict):
        return all(item is None or item == "" for item in value.values())
    return False


def _images_of(value: Any, at: Location) -> list[Image]:
    if _is_empty(value):
        return []
    value = json_list(value)
    if not isinstance(value, list):
        return [picture_of(value, at)]
    return [picture_of(item, at / index) for index, item in enumerate(value) if not _is_empty(item)]
