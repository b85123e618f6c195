"""The prompt of a sample as readable text, to show beside its answer."""

import json
import os
from typing import NamedTuple

from lightning_vlm.data.conversation import Conversation, Image, Message, Video
from lightning_vlm.data.tools import ToolCall

PICTURE = "<image>"
"""What stands in a prompt for each picture."""
VIDEO = "<video>"
"""What stands in a prompt for each video."""


class Question(NamedTuple):
    """What a model was asked.

    Args:
        text: The words. One user turn is its text, with `<image>` where a picture stands and `<video>` where
            a video does. If there are more turns, each begins on its own line with its role.
        images: The file or the address of each picture in reading order; None for one that came as bytes.
        videos: The same of each video; of one that came as frames, the file of the first.
        references: All right answers, where the sample has several.
        level: What the answer is about, where the sample says so.
        id: What its data calls it.
    """

    text: str
    images: tuple[str | None, ...] = ()
    videos: tuple[str | None, ...] = ()
    references: tuple[str, ...] = ()
    level: str | None = None
    id: str | int | None = None


def question_of(conversation: Conversation) -> Question:
    """The prompt that a conversation is.

    >>> from pathlib import Path
    >>> from lightning_vlm.data.conversation import Text
    >>> cat = Image(Path("cat.jpg"), root=Path("photos"))
    >>> ask = Message("user", (cat, Text("What is this?")))
    >>> question_of(Conversation((ask,)))[:2]
    ('<image> What is this?', ('photos/cat.jpg',))
    >>> more = (Message("assistant", (Text("A cat."),)), Message("user", (Text("Which breed?"),)))
    >>> print(question_of(Conversation((ask, *more))).text)
    user: <image> What is this?
    assistant: A cat.
    user: Which breed?
    """
    turns = conversation.messages
    texts = [" ".join(filter(None, (_text(turn), *map(_call, turn.calls)))) for turn in turns]
    if len(turns) > 1:
        texts = [f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True)]
    return Question(
        "\n".join(texts),
        tuple(_file(image) for image in conversation.images),
        tuple(_file(video.frames[0] if video.frames else video) for video in conversation.videos),
        conversation.references,
        conversation.level,
        conversation.id,
    )


def _text(turn: Message) -> str:
    text = ""
    after_picture = False
    for part in turn.parts:
        is_picture = isinstance(part, Image | Video)
        if is_picture:
            piece = PICTURE if isinstance(part, Image) else VIDEO
        else:
            piece = getattr(part, "text", None) or str(part)
        touches = text and not text[-1].isspace() and not piece[:1].isspace()
        if touches and (is_picture or after_picture):
            text += " "
        text += piece
        after_picture = is_picture
    return text


def _call(call: ToolCall) -> str:
    return f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"


def _file(image: Image | Video) -> str | None:
    if image.path is None:
        return image.url
    return os.path.normpath(os.path.join(image.root or "", image.path))
