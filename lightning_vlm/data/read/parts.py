"""The parts of a turn's content: our own, strictly, and those of other formats."""

from typing import Any

from lightning_vlm.data.conversation import Box, Part, Text
from lightning_vlm.data.read.fields import box_of, check_known_key, keys, part_type, show, text_of
from lightning_vlm.data.read.pictures import RowPictures, from_base64, picture_of
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.errors import DataError

TYPES = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "box": "box",
    "entity": "entity",
}
"""What people call the types of parts, and what they are here."""
UNREADABLE = ("video", "video_url", "audio", "audio_url", "input_audio", "file", "tool_use", "tool_result")
_PICTURE_KEYS = ("image", "path", "url", "image_url", "bytes", "base64", "data", "source")
_KEYS = {"text": ("text", "content"), "image": _PICTURE_KEYS, "box": ("box",), "entity": ("text",)}


def own_part(part: Any, source: str, key: str, reading: Reading) -> Part:
    """A part of our own format, see `readers.Messages`. An unknown key is an error."""
    match part_type(part, ["text", "image", "box", "entity"], source, key):
        case "text" | "entity" as kind:
            keys(part, source, key, required=["type", "text"])
            return Text(text_of(part["text"], source, f"{key}.text"), entity=kind == "entity")
        case "box":
            keys(part, source, key, required=["type", "box"])
            return Box(box_of(part["box"], source, f"{key}.box"))
        case _ if "base64" in part:
            keys(part, source, key, required=["type", "base64"])
            return from_base64(part["base64"], source, f"{key}.base64")
        case _:
            keys(part, source, key, required=["type", "path"], optional=["base64"])
            return picture_of(part["path"], source, f"{key}.path", reading)


def any_part(part: Any, source: str, key: str, pictures: RowPictures, reading: Reading) -> Part:
    """A part of any format. Keys without effect, such as `max_pixels`, are noted.

    A picture without a path, URL or bytes is the next one of the row.
    """
    if isinstance(part, str):
        return Text(text_of(part, source, key))
    kind, part = _typed(part, source, key)
    known = _KEYS[kind]
    for name in part:
        if name not in known and name not in ("type", "index"):
            check_known_key(name, [*known, "type"], part, source, key)
            reading.notes.ignore(f"content[*].{name}")
    if kind == "image":
        return _picture(part, source, key, pictures, reading)
    given = [name for name in known if name in part]
    if not given:
        raise DataError(source, key, show(part), f"the key '{known[0]}' too")
    value, place = part[given[0]], f"{key}.{given[0]}"
    if kind == "box":
        return Box(box_of(value, source, place))
    return Text(text_of(value, source, place), entity=kind == "entity")


def is_picture(part: Any) -> bool:
    """Whether a part is a picture or a place for one."""
    if not isinstance(part, dict):
        return False
    kind = part.get("type")
    return isinstance(kind, str) and TYPES.get(kind) == "image"


def _typed(part: Any, source: str, key: str) -> tuple[str, dict[str, Any]]:
    """What kind of part it is, and the part without its nulls, with which tables fill absent keys."""
    if not isinstance(part, dict):
        raise DataError(source, key, show(part), "an object with the key 'type'")
    if None in part.values():
        part = {name: value for name, value in part.items() if value is not None}
    written = part.get("type")
    if isinstance(written, str) and written in TYPES:
        return TYPES[written], part
    if "type" not in part:
        if isinstance(part.get("text"), str):
            return "text", part
        if any(name in part for name in ("image", "image_url")):
            return "image", part
    elif isinstance(part["type"], str) and part["type"] in UNREADABLE:
        what = part["type"].partition("_")[0]
        expected = "only text and pictures: other parts can't be read yet"
        raise DataError(source, f"{key}.type", f"a part of the type {what!r}", expected)
    written = part_type(part, list(TYPES), source, key)
    return TYPES[written], part


def _picture(part: dict[str, Any], source: str, key: str, pictures: RowPictures, reading: Reading) -> Part:
    given = [name for name in _PICTURE_KEYS if name in part and not (part[name] == "" and pictures.in_row)]
    if not given:
        index = part.get("index")
        if isinstance(index, int) and not isinstance(index, bool):
            return pictures.at(index, f"{key}.index")
        return pictures.next()
    if len(given) > 1 and given != ["path", "bytes"]:
        found = f"a picture with {' and '.join(map(repr, given))}"
        raise DataError(source, key, found, "one of them")
    name = "bytes" if "bytes" in given else given[0]
    value, place = part[name], f"{key}.{name}"
    if name in ("base64", "data"):
        if isinstance(value, str) and value.startswith("data:"):
            return picture_of(value, source, place, reading)
        return from_base64(value, source, place)
    if name == "source" and isinstance(value, dict):  # Anthropic's: {"type": "base64", "data": ...}
        if isinstance(value.get("data"), str):
            return from_base64(value["data"], source, f"{place}.data")
        value, place = value.get("url"), f"{place}.url"
    if isinstance(value, dict) and not value.keys() <= {"bytes", "path"}:
        keys(value, source, place, required=["url"], optional=["detail"])
        value, place = value["url"], f"{place}.url"
    if name == "bytes" and isinstance(value, str):
        return from_base64(value, source, place)
    return picture_of(value, source, place, reading)
