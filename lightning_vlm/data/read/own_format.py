"""Our own format, which `readers.Messages` describes. It is strict: an unknown key is an error."""

from dataclasses import replace
from typing import Any

from lightning_vlm.data.conversation import Conversation, Message, Nothing, Part, Text
from lightning_vlm.data.read.bounds import Placed, within_pictures
from lightning_vlm.data.read.columns import with_our_names
from lightning_vlm.data.read.fields import (
    check_keys,
    number_of,
    part_type,
    role_of,
    task_and_weight,
    text_of,
    turns_of,
)
from lightning_vlm.data.read.identity import ID, own_id
from lightning_vlm.data.read.located import KINDS, OPTIONS, located_part
from lightning_vlm.data.read.pictures import from_base64, picture_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.right_answers import KEYS, own_level, own_references
from lightning_vlm.data.read.tool_calls import calls_of, definitions_of
from lightning_vlm.data.read.turns import OWN_ROLES
from lightning_vlm.data.read.videos import own_video

_WORDS = ("reasoning", "tool_call_id", "name")
"""Keys of a turn that are texts."""


def own_conversation(row: Any, at: Location) -> Conversation:
    """The conversation of a row."""
    row = with_our_names(row, at.reading)
    check_keys(row, at, required=["messages"], optional=["task", "weight", "tools", *KEYS, ID])
    turns = turns_of(row["messages"], at / "messages")
    read = [_message(turn, at / "messages" / index) for index, turn in enumerate(turns)]
    contents = within_pictures([parts for _, parts in read])
    messages = tuple(
        replace(message, parts=parts) for (message, _), parts in zip(read, contents, strict=True)
    )
    task, weight = task_and_weight(row, at)
    tools = definitions_of(row["tools"], at / "tools") if "tools" in row else ()
    references, level = own_references(row, at), own_level(row, at)
    named = own_id(row, at)
    return Conversation(messages, task, weight, at.source, tools, references, level, id=named)


def _message(turn: Any, at: Location) -> tuple[Message, list[Placed]]:
    """A turn without its parts, and these."""
    has_calls = isinstance(turn, dict) and "tool_calls" in turn
    required = ["role"] if has_calls else ["role", "content"]
    check_keys(turn, at, required, ["content", "weight", "reasoning", "tool_calls", "tool_call_id", "name"])
    role = role_of(turn["role"], OWN_ROLES, at / "role")
    weight = number_of(turn.get("weight", 1.0), at / "weight")
    parts = _parts(turn["content"], at / "content") if "content" in turn else []
    calls = calls_of(turn["tool_calls"], at / "tool_calls") if has_calls else ()
    words = {name: text_of(turn[name], at / name) for name in _WORDS if name in turn}
    message = Message(
        role, (), weight, words.get("reasoning"), calls, words.get("tool_call_id"), words.get("name")
    )
    return message, parts


def _parts(content: Any, at: Location) -> list[Placed]:
    if isinstance(content, str):
        return [(Text(text_of(content, at)), at)]
    if isinstance(content, list):
        return [(_part(part, at / index), at / index) for index, part in enumerate(content)]
    raise at.wrong(content, "a text or a list of parts")


def _part(part: Any, at: Location) -> Part:
    match part_type(part, ["text", "image", "video", *KINDS, "nothing", "entity"], at):
        case "text" | "entity" as written:
            check_keys(part, at, required=["type", "text"])
            return Text(text_of(part["text"], at / "text"), entity=written == "entity")
        case "box" | "point" | "region" as kind:
            check_keys(part, at, required=["type", kind], optional=OPTIONS)
            return located_part(kind, part, at)
        case "nothing":
            check_keys(part, at, required=["type"])
            return Nothing()
        case "video":
            ways = ("path", "frames", "base64")
            given = [name for name in ways if name in part][:1] or ["path"]
            check_keys(part, at, required=["type", *given], optional=["fps", "sampling"])
            return own_video(part, at)
        case _ if "base64" in part:
            check_keys(part, at, required=["type", "base64"])
            return from_base64(part["base64"], at / "base64")
        case _:
            check_keys(part, at, required=["type", "path"])
            return picture_of(part["path"], at / "path")
