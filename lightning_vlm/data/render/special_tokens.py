"""The special tokens of a processor, which no text of a conversation may become."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from transformers import ProcessorMixin

from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.render.shared_marks import SHARED_MARKS
from lightning_vlm.data.tools import texts_of
from lightning_vlm.errors import DataError

NEXT_TURN_ENDS = {"Glm4vProcessor": "<|user|>", "Glm46VProcessor": "<|user|>"}
"""Processors whose chat templates write no end behind an answer, and the token that their models stop at: the
one that begins the next question."""

_CHECKED_AROUND = {"HunYuanVLProcessor": ("image_start_token", "image_end_token")}
"""Processors that look at what stands directly around a picture's placeholder, and how they call it."""

_PICTURES_ONLY = ("MiniCPMV4_6Processor", "PerceptionLMProcessor")
"""Processors whose videos aren't tried out here, and so refused."""


class SpecialTokens(NamedTuple):
    """The special tokens of a processor.

    Args:
        pattern: Finds one where a text spells it.
        ids: Array of int64: those that no text may become.
        ends: Those that may end a turn.
        placeholders: Those that may stand for a picture, a video or a sound.
        video: The one that stands for a video; None where a processor takes none.
        next_turn: The one that begins a question and so ends the answer before it; None in most families.
        shared_mark: What stands once between pictures that are neighbours; empty where nothing does.
    """

    pattern: re.Pattern[str]
    ids: np.ndarray
    ends: set[str]
    placeholders: set[str]
    video: str | None = None
    next_turn: str | None = None
    shared_mark: str = ""


def special_tokens(processor: ProcessorMixin) -> SpecialTokens:
    """The special tokens of a processor and its tokenizer."""
    tokenizer = processor.tokenizer
    named = [getattr(processor, f"{medium}_token", None) for medium in ("image", "video", "audio")]
    placeholders = {str(token) for token in named if token}
    around = [getattr(processor, f"{edge}_token", None) for edge in ("boi", "eoi")]  # Kosmos-2
    special = {str(token) for token in (*tokenizer.all_special_tokens, *around) if token} | placeholders
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            special.add(token.content)
    # Any text may become the unknown token.
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special - {str(tokenizer.unk_token)}}
    ids -= {None, tokenizer.unk_token_id}
    ends = special - placeholders
    if tokenizer.bos_token != tokenizer.eos_token:  # one token may begin a text and end its turns
        ends.discard(str(tokenizer.bos_token))
    video = getattr(processor, "video_token", None)
    if type(processor).__name__ in _PICTURES_ONLY:
        video = None
    return SpecialTokens(
        any_of(special),
        np.array(sorted(ids), np.int64),
        ends,
        placeholders,
        str(video) if video and getattr(processor, "video_processor", None) is not None else None,
        NEXT_TURN_ENDS.get(type(processor).__name__),
        str(getattr(processor, SHARED_MARKS.get(type(processor).__name__, ""), "")),
    )


_PRIVATE = re.compile("[\ue000-\ue007]")
"""The characters of `markers`."""


def refuse_forged(conversation: Conversation, special: re.Pattern[str]) -> None:
    """Raise where a call or a definition of a tool spells a special token, which it would become.

    A template writes them in its own way (as JSON, say), so that they can't be tokenized apart as texts are.

    Raises:
        DataError: One does.
    """
    for key, value in _given_to_templates(conversation):
        for text in texts_of(value):
            forged = special.search(text) or _PRIVATE.search(text)
            if forged:
                found = f"a text that spells {forged[0]!r}"
                expected = "no special tokens in calls and definitions"
                raise DataError(conversation.source, key, found, expected, "special_token")


def _given_to_templates(conversation: Conversation) -> Iterator[tuple[str, Any]]:
    """What a template gets of tools, and where it stands; nothing in plain chats."""
    for place, tool in enumerate(conversation.tools):
        yield f"tools[{place}]", tool
    for index, message in enumerate(conversation.messages):
        if message.role == "tool":
            yield f"messages[{index}]", [message.name, message.call_id]
        for place, call in enumerate(message.calls):
            yield f"messages[{index}].tool_calls[{place}]", [call.name, call.arguments, call.id]


def placeholder_pattern(processor: ProcessorMixin, placeholders: Iterable[str]) -> re.Pattern[str]:
    """Finds the places of pictures and videos, with what must stand directly around them.

    Args:
        processor: The processor.
        placeholders: Its tokens that may stand for a picture, a video or a sound.
    """
    found = any_of(placeholders)
    around = [str(getattr(processor, name)) for name in _CHECKED_AROUND.get(type(processor).__name__, ())]
    if not around:
        return found
    begin, end = (re.escape(token) for token in around)
    return re.compile(f"(?:{begin})?(?:{found.pattern})(?:{end})?")


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of some words, the longest first; nothing where there are none."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
