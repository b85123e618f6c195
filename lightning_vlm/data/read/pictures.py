"""Pictures as people write them: paths, URLs, base64, bytes, and what `datasets.Image` stores."""

import base64
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image

from lightning_vlm.data.conversation import Image, Part, Text
from lightning_vlm.data.read.fields import json_list, show, text_of
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

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
PLACEHOLDER = re.compile(r"<image>(?:\r?\n)?")

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_SHORTEST_BASE64 = 64
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0")
"""How the files of pictures begin."""


class RowPictures:
    """The pictures that stand beside the text of a row, given out in their order."""

    def __init__(self, row: dict[str, Any], source: str, reading: Reading) -> None:
        written = [name for name in COLUMNS if name in row]
        filled = [name for name in written if not is_empty(row[name])]
        if "image" in filled and "images" in filled:
            raise DataError(source, "images", "both 'image' and 'images'", "one of them")
        self.source = source
        self.in_row = bool(written)
        """Whether the row has a place for pictures, be it empty."""
        self.key = (filled or written or ["image"])[0]
        self.images = _images_of(row.get(self.key), source, self.key, reading)
        self.asked = 0

    def next(self) -> Part:
        """The next picture. Missing pictures are reported at the end, when their number is known."""
        self.asked += 1
        return self.images[self.asked - 1] if self.asked <= len(self.images) else Text("")

    def at(self, index: int, key: str) -> Part:
        """The picture with this index, as parts `{"type": "image", "index": 0}` ask for it."""
        if not 0 <= index < len(self.images):
            found = f"{show(index)}, but the row has {len(self.images)} picture(s)"
            raise DataError(self.source, key, found, "the index of a picture, counted from 0")
        self.asked += 1
        return self.images[index]

    def split(self, text: str, key: str) -> list[Part]:
        """A text with the next pictures where `<image>` stands, without the newlines that set them apart.

        Those are one newline after each picture, and one before those at the end of the text.
        """
        text_of(text, self.source, key)
        text = re.sub(r"\r?\n((?:<image>(?:\r?\n)?)+)\Z", r"\1", text)
        parts: list[Part] = []
        for index, words in enumerate(PLACEHOLDER.split(text)):
            if index:
                parts.append(self.next())
            if words:
                parts.append(Text(words))
        return parts

    def check_all_placed(self) -> None:
        """Raise unless each picture has one place."""
        if self.asked != len(self.images):
            found = f"{len(self.images)} picture(s) and {self.asked} place(s) for them in the conversation"
            expected = "an '<image>' where each picture stands, and a picture for each '<image>'"
            raise DataError(self.source, self.key, found, expected)


def picture_of(value: Any, source: str, key: str, reading: Reading) -> Image:
    """One picture, however it is written.

    Raises:
        DataError: The value isn't a picture, no such file exists, or it is a URL and URLs aren't
            allowed.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str) and _decoded(value) is not None:
            return Image(data=_decoded(value))
    elif isinstance(value, dict) and isinstance(value.get("url"), str):
        value, key = value["url"], f"{key}.url"
    if isinstance(value, bytes):
        return Image(data=value)
    if isinstance(value, PIL.Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG")
        return Image(data=file.getvalue())
    if isinstance(value, str):
        return _from_text(text_of(value, source, key), source, key, reading)
    raise DataError(source, key, show(value), "the path of a picture, as a text")


def from_base64(value: Any, source: str, key: str) -> Image:
    """A picture from the base64 of its file."""
    text = text_of(value, source, key)
    try:
        return Image(data=base64.b64decode("".join(text.split()), validate=True))
    except ValueError as error:  # binascii.Error is one
        found = f"{show(text)} ({error})"
        raise DataError(source, key, found, "the file of a picture in base64") from None


def _from_text(text: str, source: str, key: str, reading: Reading) -> Image:
    if ":" not in text and len(text) < _SHORTEST_BASE64:
        return _from_path(text, source, key, reading)
    if header := _DATA_URL.match(text):
        return from_base64(text[header.end() :], source, key)
    scheme = text.partition(":")[0].lower()
    if scheme == "file":
        return _from_path(_file_url(text, source, key), source, key, reading)
    if scheme in ("http", "https"):
        if not reading.allow_urls:
            expected = "the path of a file: pictures are only fetched with data.allow_urls: true"
            raise DataError(source, key, f"the URL {shorten(text)}", expected)
        return Image(url=text)
    data = _decoded(text)
    return _from_path(text, source, key, reading) if data is None else Image(data=data)


def _from_path(path: str, source: str, key: str, reading: Reading) -> Image:
    image = Image(path=Path(path), root=reading.root)
    reading.look(image, source, key)
    return image


def _file_url(url: str, source: str, key: str) -> str:
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise DataError(source, key, f"the URL {shorten(url)} ({error})", "file:///a/path") from None
    if address.netloc not in ("", "localhost"):
        # People write file://pictures/cat.jpg for a path that isn't absolute.
        return unquote(address.netloc + address.path)
    return unquote(address.path)


def _decoded(text: str) -> bytes | None:
    """The bytes of a text in base64 if they begin like a picture; None for any other text."""
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return None
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None
    return data if data.startswith(_MAGIC) else None


def is_empty(value: Any) -> bool:
    """Whether a column holds no picture: null, an empty text or list, or a list of such."""
    if value is None or isinstance(value, str):
        return not value
    if isinstance(value, list):
        return all(is_empty(item) for item in value)
    if isinstance(value, dict):
        return all(item is None or item == "" for item in value.values())
    return False


def _images_of(value: Any, source: str, key: str, reading: Reading) -> list[Image]:
    if is_empty(value):
        return []
    value = json_list(value)
    if not isinstance(value, list):
        return [picture_of(value, source, key, reading)]
    return [
        picture_of(item, source, f"{key}[{index}]", reading)
        for index, item in enumerate(value)
        if not is_empty(item)
    ]
