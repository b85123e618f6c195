"""The batches that a plan counts with: the largest ones of the data, and made ones of any length."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from lightning_vlm.data.batch.blank_pictures import BlankPicture
from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.data.batch.lengths import Ruler, SampleLength
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.errors import UserError

MakeBatch = Callable[[int], Batch]
"""A batch of so many samples, with its targets."""


class Measured(NamedTuple):
    """What a sample of the training data says.

    Args:
        size: Samples of the data.
        tokens: Array of the tokens of those looked at, pictures included.
        patches: Array of the patches of their pictures.
        numbers: Which they are.
        unusable: How many can't be used; `lightning-vlm lint` says why.
    """

    size: int
    tokens: np.ndarray
    patches: np.ndarray
    numbers: np.ndarray
    unusable: int

    @property
    def longest(self) -> SampleLength:
        """The most tokens and the most patches of a sample."""
        return SampleLength(int(self.tokens.max()), int(self.patches.max()))


def measure_some(data: VLMDataModule, model: PreTrainedModel, most: int) -> Measured:
    """Look at some samples of the training data, evenly spaced.

    Args:
        data: With a processor.
        model: On the meta device will do.
        most: How many.

    Raises:
        UserError: None of them can be used.
    """
    source = data.samples("train")
    numbers = np.unique(np.linspace(0, len(source) - 1, most).round().astype(np.int64))
    found = Ruler(data.renderer, model).lengths(source, numbers.tolist())
    usable = found[:, 0] > 0
    if not usable.any():
        raise UserError("plan: found no training sample that can be used; `lightning-vlm preview` says why")
    return Measured(len(source), found[usable, 0], found[usable, 1], numbers[usable], int((~usable).sum()))


def heaviest(measured: Measured) -> int:
    """Which sample takes most: that with most tokens, and of those with most patches."""
    order = np.lexsort((measured.patches, measured.tokens))
    return int(measured.numbers[order[-1]])


def batches_of(
    data: VLMDataModule,
    model: PreTrainedModel,
    samples: int | Sequence[int],
    targets: Callable[[Batch], Targets],
) -> MakeBatch:
    """Batches of one or more samples of the training data, so many times over."""
    each = [samples] if isinstance(samples, int) else list(samples)
    pack = data.batching.packs
    rendered = RenderedBatches.for_model(
        model, data.samples("train"), data.renderer, learn=True, prompts=False, pack=pack
    )

    def make(count: int) -> Batch:
        batch = rendered[each * count]
        if batch.skipped:
            raise batch.skipped[0]
        return batch._replace(targets=targets(batch))

    return make


class _One(Conversations):
    """A single conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        return self._conversation


def made_batches(
    renderer: Renderer,
    model: PreTrainedModel,
    length: int,
    picture: tuple[int, int] | None,
    targets: Callable[[Batch], Targets],
) -> MakeBatch:
    """Batches of a made sample: a picture if wanted, and an answer that fills it up to a length.

    Args:
        renderer: Renders it.
        model: On the meta device will do.
        length: The tokens of the sample, more or less.
        picture: Width and height of its picture; None is none.
        targets: What is learned from a batch.
    """
    unlimited = copy.copy(renderer)
    unlimited.max_length = None
    unlimited.open_picture = lambda *_: BlankPicture(picture or (1, 1))
    source = _One(_filled(unlimited, length, picture is not None))
    rendered = RenderedBatches.for_model(model, source, unlimited, learn=True, prompts=False, pack=False)

    def make(count: int) -> Batch:
        batch = rendered[[0] * count]
        return batch._replace(targets=targets(batch))

    return make


def lengthened(
    data: VLMDataModule, model: PreTrainedModel, sample: int, targets: Callable[[Batch], Targets]
) -> MakeBatch:
    """Batches of one sample of the training data, its last answer made longer, by its tokens."""
    unlimited = copy.copy(data.renderer)
    unlimited.max_length = None
    conversation = data.samples("train")[sample]
    base = len(unlimited.example(conversation).input_ids)

    def make(tokens: int) -> Batch:
        source = _One(conversation)
        if tokens > base:
            some = len(unlimited.example(_longer(conversation, 64)).input_ids) - base
            source = _One(_longer(conversation, round((tokens - base) * 64 / max(1, some))))
        rendered = RenderedBatches.for_model(
            model, source, unlimited, learn=True, prompts=False, pack=data.batching.packs
        )
        batch = rendered[[0]]
        if batch.skipped:
            raise batch.skipped[0]
        return batch._replace(targets=targets(batch))

    return make


def _longer(conversation: Conversation, words: int) -> Conversation:
    """With so many words more in its last answer."""
    messages = list(conversation.messages)
    last = max(place for place, message in enumerate(messages) if message.role == "assistant")
    parts = (*messages[last].parts, Text(" a" * words))
    messages[last] = replace(messages[last], parts=parts)
    return replace(conversation, messages=tuple(messages))


def _filled(renderer: Renderer, length: int, has_picture: bool) -> Conversation:
    """A conversation of about so many tokens."""

    def conversation(words: int) -> Conversation:
        shown = (Image(url="made"),) if has_picture else ()
        question = Message("user", (*shown, Text("What is it?")))
        return Conversation((question, Message("assistant", (Text(f"{'a ' * words}a"),))))

    least, some = (len(renderer.example(conversation(words)).input_ids) for words in (0, 64))
    return conversation(max(0, round((length - least) * 64 / max(1, some - least))))
