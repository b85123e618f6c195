"""The parts of a turn's content, as other formats write them; `own_format` reads those of our own."""

from typing import Any

from lightning_vlm.data.conversation import Nothing, Part, Text
from lightning_vlm.data.read.fields import check_keys, check_spelling, part_type, text_of, without_nulls
from lightning_vlm.data.read.located import KINDS, OPTIONS, located_part
from lightning_vlm.data.read.pictures import from_base64, picture_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.row_media import RowMedia
from lightning_vlm.data.read.videos import KEYS as VIDEO_KEYS
from lightning_vlm.data.read.videos import has_contents, video_part

TYPES = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
    **dict(zip(KINDS, KINDS, strict=True)),
    "nothing": "nothing",
    "entity": "entity",
}
"""What people call the types of parts, and what they are here."""
UNREADABLE = ("audio", "audio_url", "input_audio", "file", "tool_use", "tool_result")
_PICTURE_KEYS = ("image", "path", "url", "image_url", "bytes", "base64", "data", "source")
_KEYS = {
    "text": ("text", "content"),
    "image": _PICTURE_KEYS,
    "video": VIDEO_KEYS,
    **{kind: (kind, *OPTIONS) for kind in KINDS},
    "nothing": (),
    "entity": ("text",),
}


def part_of(part: Any, at: Location, pictures: RowMedia, videos: RowMedia) -> Part:
    """A part of any format. Keys without effect, such as `max_pixels`, are noted.

    A picture or a video without a path, URL or bytes is the next one of the row.
    """
    if isinstance(part, str):
        return Text(text_of(part, at))
    if not isinstance(part, dict):
        raise at.wrong(part, "an object with the key 'type'")
    part = without_nulls(part)
    kind = _type_of(part, at)
    if kind == "video":
        return video_part(part, at) if has_contents(part) else _of_row(part, at, videos)
    known = _KEYS[kind]
    for name in part:
        if name not in known and name not in ("type", "index"):
            check_spelling(name, [*known, "type"], part, at)
            at.reading.notes.ignore(f"content[*].{name}")
    if kind == "image":
        return _picture(part, at, pictures)
    if kind == "nothing":
        return Nothing()
    given = [name for name in known if name in part]
    if not given or (kind in KINDS and kind not in part):
        raise at.wrong(part, f"the key '{known[0]}' too")
    if kind in KINDS:
        return located_part(kind, part, at)
    return Text(text_of(part[given[0]], at / given[0]), entity=kind == "entity")


def is_medium(part: Any) -> bool:
    """Whether a part is a picture or a video, or a place for one."""
    if not isinstance(part, dict):
        return False
    written = part.get("type")
    return isinstance(written, str) and TYPES.get(written) in ("image", "video")


def _type_of(part: dict[str, Any], at: Location) -> str:
    """What a part is, in our words."""
    if "type" not in part:
        if isinstance(part.get("text"), str):
            return "text"
        if "image" in part or "image_url" in part:
            return "image"
        if "video" in part or "video_url" in part:
            return "video"
    written = part.get("type")
    if isinstance(written, str) and written in UNREADABLE:
        found = f"a part of the type {written.partition('_')[0]!r}"
        raise (at / "type").error(found, "only text, pictures and videos: other parts can't be read yet")
    return TYPES[part_type(part, TYPES, at)]


def _picture(part: dict[str, Any], at: Location, pictures: RowMedia) -> Part:
    given = [name for name in _PICTURE_KEYS if name in part]
    if pictures.has_column:  # tables fill the key of a place with an empty text
        given = [name for name in given if part[name] != ""]
    if not given:
        return _of_row(part, at, pictures)
    if len(given) > 1 and given != ["path", "bytes"]:
        raise at.error(f"a picture with {' and '.join(map(repr, given))}", "one of them")
    name = given[-1]
    value = part[name]
    at = at / name
    if name == "source" and isinstance(value, dict):  # Anthropic's: {"type": "base64", "data": ...}
        name = "data" if isinstance(value.get("data"), str) else "url"
        value = value.get(name)
        at = at / name
    elif isinstance(value, dict) and not value.keys() <= {"bytes", "path"}:
        value = check_keys(value, at, required=["url"], optional=["detail"])["url"]
        at = at / "url"
    is_data_url = isinstance(value, str) and value.startswith("data:")
    if name in ("base64", "data") and not is_data_url:
        return from_base64(value, at)
    if name == "bytes" and isinstance(value, str):
        return from_base64(value, at)
    return picture_of(value, at)


def _of_row(part: dict[str, Any], at: Location, media: RowMedia) -> Part:
    index = part.get("index")
    if isinstance(index, int) and not isinstance(index, bool):
        return media.with_index(index, at / "index")
    return media.next()
