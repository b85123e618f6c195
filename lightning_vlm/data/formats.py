"""From one record of a data file to a `Conversation`: a pure function for each format.

Each takes the record as `json.loads` gives it, the `file:line` for errors, the folder below which pictures
lie, and `look`, which is called with every picture that is a file (readers check there that it exists).
"""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Part, Role, Text
from lightning_vlm.data.fields import box_of, keys, near, number_of, part_type, role_of, show, text_of, turns
from lightning_vlm.errors import DataError

Look: TypeAlias = Callable[[Image, str, str], object]
"""Called with a picture, its `file:line` and its key."""
Format: TypeAlias = Callable[[Any, str, Path, Look], Conversation]

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_OPENAI_ROLES: dict[str, Role] = {**_ROLES, "developer": "system"}
_LLAVA_ROLES: dict[str, Role] = {**_ROLES, "human": "user", "gpt": "assistant"}
REFUSED = ("video", "videos", "audio", "audios", "tools", "functions")
"""Keys of other people's records that would change what is learned, and that nothing here can honour."""
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


def from_messages(record: Any, source: str, root: Path, look: Look) -> Conversation:
    """Our own format, see `readers.Messages`. Strict: an unknown key is an error."""
    keys(record, source, "", required=["messages"], optional=["task", "weight"])
    return _chat(record, source, _ROLES, lambda part, key: _part(part, source, key, root, look))


def from_openai(record: Any, source: str, root: Path, look: Look) -> Conversation:
    """OpenAI's chat format, see `readers.OpenAIMessages`."""
    record = _without_nulls(_foreign(record, source, "messages"))
    return _chat(record, source, _OPENAI_ROLES, lambda part, key: _openai_part(part, source, key, root, look))


def from_columns(record: Any, source: str, root: Path, look: Look) -> Conversation:
    """A row of a Hugging Face data set, see `readers.HFDataset`: keys that are None count as absent."""
    if record.get("conversations") is not None:
        return from_llava(record, source, root, look)
    placed = "images" in record or "image" in record
    record = _without_nulls(_foreign(record, source, "messages"))
    pictures = _Pictures(record, source, root, look)

    def read_text(text: str, key: str) -> list[Part]:
        return _split(text, source, key, pictures) if placed else [Text(text_of(text, source, key))]

    def read(part: Any, key: str) -> Part:
        if isinstance(part, dict) and part.get("type") == "image" and not {"path", "base64"} & part.keys():
            keys(part, source, key, required=["type"])
            return pictures.next()
        if isinstance(part, dict) and part.get("type") == "image_url":
            return _openai_part(part, source, key, root, look)
        return _part(part, source, key, root, look)

    conversation = _chat(record, source, _OPENAI_ROLES, read, read_text)
    pictures.check_all_placed()
    return conversation


def from_llava(record: Any, source: str, root: Path, look: Look) -> Conversation:
    """The format of LLaVA and ShareGPT, see `readers.LLaVA`."""
    record = _without_nulls(_foreign(record, source, "conversations"))
    pictures = _Pictures(record, source, root, look)
    messages = []
    if record.get("system"):
        messages.append(Message("system", (Text(text_of(record["system"], source, "system")),)))
    shift = len(messages)
    for index, turn in enumerate(turns(record["conversations"], source, "conversations")):
        key = f"conversations[{index}]"
        keys(turn, source, key, required=["from", "value"])
        parts = _split(text_of(turn["value"], source, f"{key}.value"), source, f"{key}.value", pictures)
        messages.append(Message(role_of(turn["from"], _LLAVA_ROLES, source, f"{key}.from"), tuple(parts)))
    pictures.check_all_placed()
    try:
        return Conversation(tuple(messages), *_task_and_weight(record, source), source)
    except DataError as error:  # told in the words of the file, not of Conversation
        key = re.sub(r"messages\[(\d+)\]", lambda m: f"conversations[{int(m[1]) - shift}]", error.key)
        key = re.sub(r"\.content\[\d+\]", ".value", key).replace(".role", ".from")
        key = key.replace("messages", "conversations")
        raise DataError(source, key, error.found, error.expected) from None


class _Pictures:
    """The pictures that stand beside the words of a record, handed out in their order."""

    def __init__(self, record: dict[str, Any], source: str, root: Path, look: Look) -> None:
        self.key = "images" if "images" in record else "image"
        if "images" in record and "image" in record:
            raise DataError(source, "images", "both 'image' and 'images'", "one of them")
        value = record.get(self.key, [])
        values = value if isinstance(value, list) else [value]
        self.images = [
            _picture(one, source, f"{self.key}[{index}]" if isinstance(value, list) else self.key, root, look)
            for index, one in enumerate(values)
        ]
        self.source, self.asked = source, 0

    def next(self) -> Part:
        """The next picture. One too many is reported at the end, when it is known how many are."""
        self.asked += 1
        return self.images[self.asked - 1] if self.asked <= len(self.images) else Text("")

    def check_all_placed(self) -> None:
        if self.asked != len(self.images):
            found = f"{len(self.images)} picture(s) and {self.asked} place(s) for them in the conversation"
            expected = "an '<image>' where each picture stands, and a picture for each '<image>'"
            raise DataError(self.source, self.key, found, expected)


def _chat(
    record: dict[str, Any],
    source: str,
    roles: dict[str, Role],
    read: Callable[[Any, str], Part],
    read_text: Callable[[str, str], list[Part]] | None = None,
) -> Conversation:
    """Turns with `role` and `content`. `read` reads one part, `read_text` a content that is no list."""
    messages = []
    for index, turn in enumerate(turns(record["messages"], source, "messages")):
        key = f"messages[{index}]"
        keys(turn, source, key, required=["role", "content"])
        role, content = role_of(turn["role"], roles, source, f"{key}.role"), turn["content"]
        key = f"{key}.content"
        if isinstance(content, list):
            parts = [read(part, f"{key}[{place}]") for place, part in enumerate(content)]
        elif not isinstance(content, str):
            raise DataError(source, key, show(content), "a text or a list of parts")
        elif read_text:
            parts = read_text(content, key)
        else:
            parts = [Text(text_of(content, source, key))]
        messages.append(Message(role, tuple(parts)))
    return Conversation(tuple(messages), *_task_and_weight(record, source), source)


def _part(part: Any, source: str, key: str, root: Path, look: Look) -> Part:
    """A part of our own format."""
    match part_type(part, ["text", "image", "box", "entity"], source, key):
        case "text" | "entity" as kind:
            keys(part, source, key, required=["type", "text"])
            return Text(text_of(part["text"], source, f"{key}.text"), entity=kind == "entity")
        case "box":
            keys(part, source, key, required=["type", "box"])
            return Box(box_of(part["box"], source, f"{key}.box"))
        case _ if "base64" in part:
            keys(part, source, key, required=["type", "base64"])
            return _from_base64(part["base64"], source, f"{key}.base64")
        case _:
            keys(part, source, key, required=["type", "path"], optional=["base64"])
            return _picture(part["path"], source, f"{key}.path", root, look)


def _openai_part(part: Any, source: str, key: str, root: Path, look: Look) -> Part:
    if part_type(part, ["text", "image_url"], source, key) == "text":
        keys(part, source, key, required=["type", "text"])
        return Text(text_of(part["text"], source, f"{key}.text"))
    keys(part, source, key, required=["type", "image_url"])
    keys(part["image_url"], source, f"{key}.image_url", required=["url"], optional=["detail"])
    key, url = f"{key}.image_url.url", part["image_url"]["url"]
    if isinstance(url, str) and (header := _DATA_URL.match(url)):
        return _from_base64(url[header.end() :], source, key)
    return _picture(url, source, key, root, look)


def _split(text: str, source: str, key: str, pictures: _Pictures) -> list[Part]:
    """Put pictures where `<image>` stands, without the newlines that only set them apart.

    That is one newline after each, and one before those at the end of the text.
    """
    text = re.sub(r"\r?\n((?:<image>(?:\r?\n)?)+)\Z", r"\1", text)
    parts: list[Part] = []
    for index, words in enumerate(re.split(r"<image>(?:\r?\n)?", text)):
        if index:
            parts.append(pictures.next())
        if words:
            parts.append(Text(text_of(words, source, key)))
    return parts


def _picture(value: Any, source: str, key: str, root: Path, look: Look) -> Image:
    """A picture from a path, from bytes, or from what `datasets.Image` stores of either."""
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        image = Image(path=Path(text_of(value, source, key)), root=root)
        look(image, source, key)
        return image
    if isinstance(value, bytes):
        return Image(data=value)
    raise DataError(source, key, show(value), "the path of a picture, as a text")


def _from_base64(value: Any, source: str, key: str) -> Image:
    text = text_of(value, source, key)
    try:
        return Image(data=base64.b64decode(text, validate=True))
    except ValueError as error:  # binascii.Error is one
        raise DataError(source, key, f"{show(text)} ({error})", "the file of a picture in base64") from None


def _foreign(record: Any, source: str, key: str) -> dict[str, Any]:
    """A record in someone else's format: its further keys (id, width, ...) are left alone."""
    if not isinstance(record, dict):
        raise DataError(source, "", show(record), f"an object with the key '{key}'")
    if record.get(key) is None:
        raise DataError(source, "", show(record), f"the key '{key}'{near(key, record)}")
    for refused in REFUSED:
        if record.get(refused):
            raise DataError(source, refused, show(record[refused]), "only words and pictures: leave it out")
    return record


def _without_nulls(value: Any) -> Any:
    """Arrow tables and exported chats fill keys that aren't there with null."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _task_and_weight(record: dict[str, Any], source: str) -> tuple[str, float]:
    task = text_of(record.get("task", "default"), source, "task")
    if not task:
        raise DataError(source, "task", "an empty text", "the name of a task")
    return task, number_of(record.get("weight", 1.0), source, "weight")
