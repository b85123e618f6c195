"""What was said so far, to a model and to the one beside it."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_vlm.chat.opened import OpenedModel
from lightning_vlm.chat.streaming import Answer, answers
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Conversation, Image, Message, Part, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import nearest

SOURCE = "chat"
"""What errors about a conversation begin with."""


def picture(path: str | Path) -> Image:
    """A picture of a question, by its path. It is opened here once, so that a broken one is refused at once.

    Raises:
        UserError: There is no such file, or it is no picture.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = nearest(path.name, _names_in(path.parent))
        hint = f"; did you mean {path.with_name(near)}?" if near else ""
        raise UserError(f"{path}: there is no such file{hint}")
    image = Image(Path(path.name), root=path.parent)
    load_image(image, SOURCE, "image")
    return image


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(file.name for file in folder.iterdir() if file.is_file())
    except OSError:
        return []


class Voice:
    """One of the models that answer, and what it has heard and said.

    Args:
        name: What its answers are called.
        opened: The model.
        as_base: Whether it is the base model of `opened`.
    """

    def __init__(self, name: str, opened: OpenedModel, as_base: bool = False) -> None:
        self.name = name
        self.opened = opened
        self.as_base = as_base
        self.messages: tuple[Message, ...] = ()

    def answer(
        self,
        question: Message,
        system: str | None,
        generation: dict[str, Any],
        stop: threading.Event | None = None,
    ) -> Iterator[Answer]:
        """What it answers, as from `answers`. Question and answer are remembered once it is there."""
        first = () if system is None else (Message("system", (Text(system),)),)
        asked = (*self.messages, question)
        whole = Answer()
        conversation = Conversation((*first, *asked), source=SOURCE)
        for whole in answers(self.opened, conversation, generation, self.as_base, stop):
            yield whole
        found = None if whole.prediction is None else whole.prediction.found
        views = () if whole.prediction is None else whole.prediction.views
        parts = self._parts(whole.text, found, views)
        self.messages = (*asked, Message("assistant", parts, reasoning=whole.reasoning))

    def _parts(self, text: str, found: Found | None, views: Sequence[View]) -> tuple[Part, ...]:
        """An answer as parts of a conversation. Boxes in a family's own tokens are boxes again, where they
        alone are the answer: as words such tokens would be other tokens."""
        codec = self.opened.renderer.boxes.codec
        if found is None or not found.items or not any(token in text for token in codec.tokens):
            return (Text(text),)
        try:
            again = codec.write(found.items, views).text
        except ValueError:
            return (Text(text),)
        return tuple(found.items) if again == text else (Text(text),)


class Session:
    """A conversation with one model, or with several that answer the same questions.

    Args:
        voices: Who answers, in this order.
        generation: Arguments of `generate`.
        system: The system prompt; None for none.
    """

    def __init__(self, voices: Sequence[Voice], generation: dict[str, Any], system: str | None) -> None:
        self.voices = list(voices)
        self.generation = generation
        self.system = system

    def question(self, parts: Sequence[Part]) -> Message:
        """A turn of the user."""
        return Message("user", tuple(parts))

    def ask(self, voice: Voice, question: Message, stop: threading.Event | None = None) -> Iterator[Answer]:
        """What a voice answers, until `stop` is set."""
        return voice.answer(question, self.system, self.generation, stop)

    def forget(self) -> None:
        """Begin a new conversation; the system prompt stays."""
        for voice in self.voices:
            voice.messages = ()

    @property
    def pictures(self) -> list[Image]:
        """All pictures so far, in reading order."""
        parts = [part for message in self.voices[0].messages for part in message.parts]
        return [part for part in parts if isinstance(part, Image)]

    def again(self) -> "Session":
        """Another conversation with the same models."""
        voices = [Voice(voice.name, voice.opened, voice.as_base) for voice in self.voices]
        return Session(voices, self.generation, self.system)
