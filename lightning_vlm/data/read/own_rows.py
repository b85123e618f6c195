"""The way back: conversations as rows of our own format, which `read` takes."""

import base64
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_vlm.data.conversation import Conversation, Message
from lightning_vlm.data.parts import Image, Located, Nothing, Part, Text, Video


def own_row(conversation: Conversation, root: Path) -> dict[str, Any]:
    """A conversation as a row.

    Args:
        conversation: Any.
        root: Where paths of pictures and videos begin, which `data.image_root` is to name. Pictures that lie
            elsewhere go into the row as they are.

    >>> ask = Message("user", (Image(Path("cat.jpg"), root=Path("photos")), Text("What is this?")))
    >>> own_row(Conversation((ask,), id="a"), Path("photos"))["messages"][0]["content"][0]
    {'type': 'image', 'path': 'cat.jpg'}
    """
    row: dict[str, Any] = {"messages": [_turn(message, root) for message in conversation.messages]}
    row["task"] = conversation.task
    if conversation.weight != 1.0:
        row["weight"] = conversation.weight
    more = {
        "tools": [dict(tool) for tool in conversation.tools],
        "references": list(conversation.references),
        "level": conversation.level,
        "id": conversation.id,
    }
    return row | {name: value for name, value in more.items() if value not in ([], None)}


def _turn(message: Message, root: Path) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": [_part(part, root) for part in message.parts]}
    if message.weight != 1.0:
        turn["weight"] = message.weight
    if message.calls:
        calls = [asdict(call) for call in message.calls]
        turn["tool_calls"] = [{name: one[name] for name in one if one[name] is not None} for one in calls]
    more = {"reasoning": message.reasoning, "tool_call_id": message.call_id, "name": message.name}
    return turn | {name: value for name, value in more.items() if value is not None}


def _part(part: Part, root: Path) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "entity" if part.entity else "text", "text": part.text}
    if isinstance(part, Nothing):
        return {"type": "nothing"}
    if isinstance(part, Located):
        kind = type(part).__name__.lower()
        more = {"label": part.label, "image": part.image, "pixels": part.pixels or None}
        given = {name: value for name, value in more.items() if value is not None}
        return {"type": kind, kind: list(part.numbers), **given}
    if isinstance(part, Image):
        return {"type": "image", **_file(part, root)}
    return _video(part, root)


def _video(video: Video, root: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "video"}
    if video.frames:
        row["frames"] = [_file(frame, root).get("path") or str(frame.path) for frame in video.frames]
    else:
        row |= _file(video, root)
    if video.fps is not None:
        row["fps"] = video.fps
    if video.sampling is not None:
        settings = asdict(video.sampling)
        row["sampling"] = {name: value for name, value in settings.items() if value is not None}
    return row


def _file(medium: Image | Video, root: Path) -> dict[str, Any]:
    """Where a file is from the root; its bytes if it isn't below it."""
    if medium.url is not None:
        return {"path": medium.url}
    data = medium.data
    if medium.path is not None:
        file = os.path.abspath(os.path.join(medium.root or "", medium.path))
        below = os.path.relpath(file, os.path.abspath(root))
        if below != os.pardir and not below.startswith(os.path.join(os.pardir, "")):
            return {"path": Path(below).as_posix()}
        data = Path(file).read_bytes()
    assert data is not None
    return {"base64": base64.b64encode(data).decode()}
