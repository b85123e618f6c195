"""Pictures as people write them: paths, URLs, base64, bytes, and what `datasets.Image` stores."""

import base64
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import PIL.Image

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.read.fields import text_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.words import describe
from lightning_vlm.nearest import shorten

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+(?:={1,2}\s*)?")
_SHORTEST_BASE64 = 64
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0")
"""How the files of pictures begin."""


def picture_of(value: Any, at: Location) -> Image:
    """One picture, however it is written.

    Raises:
        DataError: The value isn't a picture, no such file exists, or it is a URL and URLs aren't
            allowed.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as `datasets.Image` stores it
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    elif isinstance(value, dict) and isinstance(value.get("url"), str):
        value = value["url"]
        at = at / "url"
    if isinstance(value, bytes):
        return Image(data=value)
    if isinstance(value, PIL.Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG")
        return Image(data=file.getvalue())
    if isinstance(value, str):
        return _from_text(text_of(value, at), at)
    raise at.wrong(value, "the path of a picture, as a text")


def from_base64(value: Any, at: Location) -> Image:
    """A picture from the base64 of its file."""
    return Image(data=bytes_of_base64(text_of(value, at), at, "picture"))


def bytes_of_base64(text: str, at: Location, what: str) -> bytes:
    """The bytes of a file in base64."""
    try:
        return _bytes_of(text)
    except ValueError as error:  # binascii.Error is one
        raise at.error(f"{describe(text)} ({error})", f"the file of a {what} in base64") from None


def check_url(url: str, at: Location, what: str) -> dict[str, Any]:
    """What a picture or a video keeps of an http or https address, if it may be fetched."""
    if not at.reading.allow_urls:
        expected = f"the path of a file: {what} are only fetched with data.allow_urls: true"
        raise at.error(f"the URL {shorten(url)}", expected)
    return {"url": url, "private": at.reading.allow_urls == "private"}


def _bytes_of(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _from_text(text: str, at: Location) -> Image:
    if ":" not in text:
        data = _picture_in_base64(text)
        return _from_path(text, at) if data is None else Image(data=data)
    if header := _DATA_URL.match(text):
        return from_base64(text[header.end() :], at)
    scheme = text.partition(":")[0].lower()
    if scheme == "file":
        return _from_path(path_of_file_url(text, at), at)
    if scheme in ("http", "https"):
        return Image(**check_url(text, at, "pictures"))
    return _from_path(text, at)


def _picture_in_base64(text: str) -> bytes | None:
    """The bytes of a text in base64 if they begin like a picture; None for any other text."""
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return None
    try:
        data = _bytes_of(text)
    except ValueError:
        return None
    return data if data.startswith(_MAGIC) else None


def _from_path(path: str, at: Location) -> Image:
    image = Image(path=Path(path), root=at.reading.root)
    at.reading.check_image(image, at.source, at.key)
    return image


def path_of_file_url(url: str, at: Location) -> str:
    """The path that a file:// address names."""
    try:
        address = urlsplit(url)
    except ValueError as error:
        raise at.error(f"the URL {shorten(url)} ({error})", "file:///a/path") from None
    if address.netloc in ("", "localhost"):
        return unquote(address.path)
    # People write file://pictures/cat.jpg for a path that isn't absolute.
    return unquote(address.netloc + address.path)
