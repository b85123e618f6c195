"""What the kinds of malformed input share."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Conversation, Text
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.models.loading.load import load_processor
from tests.support.rendering import supervised


class Right(NamedTuple):
    """Expected where input only looks broken: what is read of it."""

    value: Any


class Case(NamedTuple):
    """One input.

    Args:
        make: Makes it in the working directory; gives what `take` is called with.
        expected: Words of the error that refuses it, or what is read.
    """

    make: Callable[[], Any]
    expected: str | Right


GOOD = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}
"""A row without a fault."""
GOOD_TEXTS = ["Hi?", "Yes."]


def file_of(content: bytes | str, name: str = "data.jsonl") -> Callable[[], str]:
    """Writes a file; gives its name."""

    def make() -> str:
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        Path(name).write_bytes(data)
        return name

    return make


def row_of(row: Any) -> Callable[[], str]:
    """Writes a file of a good row and of another, on its second line."""
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return file_of(json.dumps(GOOD).encode() + b"\n" + data + b"\n")


def turns(*given: Any, **more: Any) -> dict[str, Any]:
    """A row whose turns have these roles and contents in turn, and with further keys."""
    pairs = zip(given[::2], given[1::2], strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


@cache
def renderer() -> Renderer:
    """That of the model that comes along."""
    return Renderer(load_processor("drawn-vlm"), max_length=4096)


def texts_of(path: str, **options: Any) -> list[list[str]]:
    """Read a file of data as training does: all rows are checked, then each is read again and rendered.

    Raises:
        UserError: As `read` and `Renderer.example`.
    """
    return [learned(sample) for sample in read(path, **options)]


def learned(sample: Conversation, with_renderer: Renderer | None = None) -> list[str]:
    """The parts of a sample in short, after it was rendered. Every answer must be learned."""
    renders = with_renderer or renderer()
    example = renders.example(sample)
    taught = "".join(supervised(renders, example))
    for message in example.conversation.messages:
        for part in message.parts:
            if isinstance(part, Text) and part.text:
                is_answer = message.role == "assistant"
                assert not is_answer or part.text in taught, f"{part.text!r} isn't learned"
    return [said(part) for message in example.conversation.messages for part in message.parts]


def said(part: Any) -> str:
    """A part in short: the words of a text, or what the part is."""
    return part.text if isinstance(part, Text) else type(part).__name__
