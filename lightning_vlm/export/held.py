"""The samples that an exported folder is tried on."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.conversation import Conversation, Image
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import Turn, arrange, text_spans


class Held(NamedTuple):
    """A question as training renders it, and as messages for `apply_chat_template`.

    Args:
        source: Where it came from.
        inputs: The batch of one that training would get.
        chat: What `apply_chat_template` takes; pictures are PNG files.
    """

    source: str
    inputs: dict[str, Tensor]
    chat: list[dict[str, Any]]


def drawn(count: int) -> list[Conversation]:
    """Drawn pictures of several sizes with questions, of a split that nothing is trained on."""
    sizes = (64, 96, 224, 128)
    sources = {size: Drawn("test", size=count, image_size=size) for size in set(sizes)}
    return [sources[sizes[index % len(sizes)]][index] for index in range(count)]


def held(
    processor: ProcessorMixin, conversations: Iterable[Conversation], count: int, folder: Path
) -> list[Held]:
    """The first questions of some conversations.

    Args:
        processor: That the model was trained with.
        conversations: Only what comes before their first answer is taken.
        count: The most of them.
        folder: Where the pictures go.

    Raises:
        UserError: As from `Renderer`.
    """
    renderer = Renderer(processor)
    found = []
    asking = (one for one in conversations if any(turn.role == "user" for turn in one.messages))
    for index, conversation in enumerate(islice(asking, count)):
        asked = _question(conversation)
        example, _ = renderer.prompt(asked)
        turns, _ = arrange(asked.messages, renderer.template.accepts)
        found.append(
            Held(
                conversation.source,
                {"input_ids": example.input_ids[None], **example.inputs},
                _chat(turns, conversation.source, folder, index),
            )
        )
    return found


def _question(conversation: Conversation) -> Conversation:
    roles = [message.role for message in conversation.messages]
    asked = roles.index("user")  # a greeting of the assistant may come before it
    stop = roles.index("assistant", asked) if "assistant" in roles[asked:] else len(roles)
    return Conversation(conversation.messages[:stop], task=conversation.task, source=conversation.source)


def _chat(turns: Sequence[Turn], source: str, folder: Path, index: int) -> list[dict[str, Any]]:
    chat: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        content = []
        parts = [part for message in turn.messages for part in message.parts]
        following = enumerate(part for part in parts if isinstance(part, Image))
        for span in text_spans(turn):
            if span is not None:
                content.append({"type": "text", "text": span.text})
                continue
            place, picture = next(following)
            path = folder.resolve() / f"{index}-{number}-{place}.png"
            load_image(picture, source, "image").save(path)
            content.append({"type": "image", "path": str(path)})
        chat.append({"role": turn.role, "content": content})
    return chat
