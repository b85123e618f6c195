"""The pictures and videos that stand beside the text of a row, and the places in the text they belong to."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Image, Part, Text, Video
from lightning_vlm.data.read.fields import json_list, text_of
from lightning_vlm.data.read.pictures import picture_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.videos import is_one_video, video_of
from lightning_vlm.data.read.words import describe


class Medium(NamedTuple):
    """What stands beside the text.

    Args:
        name: What errors call it.
        place: What stands for it in a text.
        columns: Keys of a row that hold it. The first that isn't empty is read.
        read: Reads one.
        is_one: Whether a list is one of it, and not several.
    """

    name: str
    place: str
    columns: tuple[str, ...]
    read: Callable[[Any, Location], Image | Video]
    is_one: Callable[[Any, str], bool]


PICTURES = Medium(
    "picture",
    "<image>",
    (
        "images",
        "image",
        "image_path",
        "image_paths",
        "image_url",
        "image_urls",
        "image_file",
        "img",
        "file_name",
    ),
    picture_of,
    lambda value, column: False,
)
VIDEOS = Medium(
    "video",
    "<video>",
    ("videos", "video", "video_path", "video_paths", "video_url", "video_urls", "video_file"),
    video_of,
    is_one_video,
)
COLUMNS = PICTURES.columns + VIDEOS.columns
"""Keys of a row that hold its pictures and videos."""


def has_media(row: dict[str, Any]) -> bool:
    """Whether a row has a picture or a video beside its text."""
    return any(name in row and not _is_empty(row[name]) for name in COLUMNS)


class RowMedia:
    """The pictures or the videos of a row, given out in their order.

    Args:
        medium: Which of the two.
        row: The row.
        at: Where the row stands.
    """

    def __init__(self, medium: Medium, row: dict[str, Any], at: Location) -> None:
        written = [name for name in medium.columns if name in row]
        filled = [name for name in written if not _is_empty(row[name])]
        several = medium.columns[0]
        one = several[:-1]
        if one in filled and several in filled:
            raise (at / several).error(f"both '{one}' and '{several}'", "one of them")
        key = (filled or written or [one])[0]
        self.medium = medium
        self.place = medium.place
        """What stands for one in a text."""
        self.has_column = bool(written)
        """Whether the row has a column for them, even if it is empty."""
        self.at = at / key
        self.items = _items_of(row.get(key), medium, key, self.at)
        self.placed = 0
        """How many places for them there are so far."""

    def next(self) -> Part:
        """The next one. Missing ones are reported at the end, when their number is known."""
        self.placed += 1
        if self.placed > len(self.items):
            return Text("")
        return self.items[self.placed - 1]

    def with_index(self, index: int, at: Location) -> Part:
        """The one that a part such as `{"type": "image", "index": 0}` asks for."""
        name = self.medium.name
        if not 0 <= index < len(self.items):
            found = f"{describe(index)}, but the row has {counted(len(self.items), name)}"
            raise at.error(found, f"the index of a {name}, counted from 0")
        self.placed += 1
        return self.items[index]

    def check_all_placed(self) -> None:
        """Raise unless each has one place."""
        if self.placed != len(self.items):
            name = self.medium.name
            places = counted(self.placed, "place")
            found = f"{counted(len(self.items), name)} and {places} for them in the conversation"
            expected = f"a '{self.place}' where each {name} stands, and a {name} for each '{self.place}'"
            raise self.at.error(found, expected, "picture_count")


def split(text: str, at: Location, media: Sequence[RowMedia]) -> list[Part]:
    """A text with the next pictures and videos where their places stand, without the newlines around these.

    Those are one newline after each place, and one before those at the end of the text.

    Args:
        text: Of a turn.
        at: Where it stands.
        media: Those whose places count as such.
    """
    by_place = {medium.place: medium for medium in media}
    place = "|".join(map(re.escape, by_place))
    # A newline behind a place is none before the last ones; looking on from each would take its square.
    behind_none = "".join(f"(?<!{re.escape(name)})" for name in by_place)
    newline = rf"{behind_none}(?:\r\n|(?<!\r)\n)"
    text = re.sub(rf"{newline}((?:(?:{place})(?:\r?\n)?)+)\Z", r"\1", text_of(text, at))
    parts: list[Part] = []
    for number, piece in enumerate(re.split(rf"({place})(?:\r?\n)?", text)):
        if number % 2:
            parts.append(by_place[piece].next())
        elif piece:
            parts.append(Text(piece))
    return parts


def _is_empty(value: Any) -> bool:
    """Whether a column holds nothing: null, an empty text or list, or a list of such."""
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, list):
        return all(_is_empty(item) for item in value)
    if isinstance(value, dict):
        return all(item is None or item == "" for item in value.values())
    return False


def _items_of(value: Any, medium: Medium, column: str, at: Location) -> list[Image | Video]:
    if _is_empty(value):
        return []
    value = json_list(value)
    if not isinstance(value, list) or medium.is_one(value, column):
        return [medium.read(value, at)]
    return [medium.read(item, at / index) for index, item in enumerate(value) if not _is_empty(item)]
