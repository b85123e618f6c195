"""Processors that put the picture in front of the text by themselves (Kosmos-2, BLIP-2, InstructBLIP).

Their chat templates have no place for a picture, and each sample has exactly one. Which processors do so is
found by looking at what a processor makes of a short text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image
from transformers import ProcessorMixin

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Image
from lightning_vlm.data.render.turns import Turn
from lightning_vlm.errors import DataError


class PictureHabits(NamedTuple):
    """What a processor does to a text with a picture.

    Args:
        in_front: It writes the picture in front of the text, wherever a placeholder stands.
        strips: It takes white space from the end of the text, so that no prompt ends in any.
    """

    in_front: bool = False
    strips: bool = False


def picture_habits(processor: ProcessorMixin) -> PictureHabits:
    """What a processor does to a text with a picture, as far as a short text shows it."""
    tokenizer = processor.tokenizer
    placeholder = getattr(processor, "image_token", None) or getattr(tokenizer, "image_token", None)
    alone = _length(processor, "x", with_picture=False)
    shown = _length(processor, "x", with_picture=True)
    if alone is None or shown is None or shown <= alone:
        return PictureHabits()
    if placeholder is not None:
        replaced = _length(processor, f"{placeholder}x", with_picture=True)
        if replaced is None or replaced <= shown:
            return PictureHabits()
    return PictureHabits(True, alone == _length(processor, "x\n\n", with_picture=False))


def check_one_picture(turns: Sequence[Turn], name: str, source: str) -> None:
    """Refuse a sample that hasn't one picture, in its first question.

    Args:
        turns: Of the sample.
        name: Of the processor.
        source: Of the sample.

    Raises:
        DataError: There are none, several, or one that comes later.
    """
    places = []
    for turn in turns:
        for message in turn.messages:
            places += [turn.role for part in message.parts if isinstance(part, Image)]
    asked = [turn for turn in turns if turn.role == "user"]
    first = [part for message in (asked[0].messages if asked else ()) for part in message.parts]
    in_first = sum(isinstance(part, Image) for part in first)
    if len(places) != 1 or in_first != 1:
        found = f"{counted(len(places), 'picture')}, {in_first} of them in the first question"
        raise DataError(source, "messages", found, f"one there, which {name} puts in front of all text")


def _length(processor: Any, text: str, *, with_picture: bool) -> int | None:
    """How many tokens a text becomes; None where the processor refuses it."""
    images = [[PIL.Image.new("RGB", (64, 64))]] if with_picture else None
    try:
        return len(processor(text=[text], images=images)["input_ids"][0])
    except Exception:  # a processor may raise anything at a text and pictures that don't fit
        return None
