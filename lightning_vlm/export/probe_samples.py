"""The samples on which an exported folder is compared with the trained model."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.conversation import Conversation, Image
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import TextSpan, Turn, arrange, text_spans
from lightning_vlm.data.video.clip import Clip
from lightning_vlm.data.video.sampling import VideoSampling

_SIZES = (64, 96, 224, 128)
"""Of drawn pictures."""


class ProbeSample(NamedTuple):
    """A question as training renders it, and as messages for `apply_chat_template`.

    Args:
        source: Where it came from.
        inputs: The batch of one that training would get.
        chat: What `apply_chat_template` takes; pictures are PNG files. A video has its frames as such files,
            and what is known of it as `metadata`.
    """

    source: str
    inputs: dict[str, Tensor]
    chat: list[dict[str, Any]]


def drawn_conversations(count: int) -> list[Conversation]:
    """Drawn pictures of several sizes with questions, of a split that nothing is trained on."""
    sources = [Drawn("test", size=count, image_size=size) for size in _SIZES]
    conversations = []
    for index in range(count):
        source = sources[index % len(sources)]
        conversations.append(source[index])
    return conversations


def probe_samples(
    processor: ProcessorMixin,
    conversations: Iterable[Conversation],
    count: int,
    folder: Path,
    video: VideoSampling | None = None,
) -> list[ProbeSample]:
    """The first questions of some conversations.

    Args:
        processor: That the model was trained with.
        conversations: Only what comes before their first answer is taken.
        count: The most of them.
        folder: Where pictures and frames go.
        video: How videos are sampled.

    Raises:
        UserError: As from `Renderer`.
    """
    renderer = Renderer(processor, video=video)
    samples: list[ProbeSample] = []
    for conversation in conversations:
        if len(samples) == count:
            break
        question = _question(conversation)
        if question is None:
            continue
        example, _ = renderer.prompt(question)
        inputs = {"input_ids": example.input_ids[None], **example.inputs}
        turns, _ = arrange(example.conversation.messages, renderer.template.accepts)  # boxes are texts there
        chat = _chat(renderer, turns, conversation.source, folder.resolve() / str(len(samples)))
        samples.append(ProbeSample(conversation.source, inputs, chat))
    return samples


def _question(conversation: Conversation) -> Conversation | None:
    """What comes before the first answer, if there is a question."""
    roles = [message.role for message in conversation.messages]
    if "user" not in roles:
        return None
    stop = roles.index("user")  # a greeting of the assistant may come before it
    while stop < len(roles) and roles[stop] != "assistant":
        stop += 1
    return Conversation(conversation.messages[:stop], task=conversation.task, source=conversation.source)


def _chat(renderer: Renderer, turns: Sequence[Turn], source: str, prefix: Path) -> list[dict[str, Any]]:
    """The turns as messages; pictures and frames are saved into files that begin with the prefix."""
    chat: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        content: list[dict[str, Any]] = []
        for place, span in enumerate(text_spans(turn)):
            name = f"{prefix}-{number}-{place}"
            if isinstance(span, TextSpan):
                content.append({"type": "text", "text": span.text})
            elif isinstance(span, Image):
                load_image(span, source, "image").save(f"{name}.png")
                content.append({"type": "image", "path": f"{name}.png"})
            else:
                content.append(_video(renderer.open_video(span, source, "video"), name))
        if turn.role in renderer.template.as_text and [part["type"] for part in content] == ["text"]:
            chat.append({"role": turn.role, "content": content[0]["text"]})
        else:
            chat.append({"role": turn.role, "content": content})
    return chat


def _video(clip: Clip, name: str) -> dict[str, Any]:
    """A video as its frames, saved into files, so that none is chosen or compressed again."""
    paths = []
    for number, frame in enumerate(clip.frames):
        path = f"{name}-{number}.png"
        PIL.Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(path)
        paths.append(path)
    return {"type": "video", "frames": paths, "metadata": dict(clip.metadata)}
