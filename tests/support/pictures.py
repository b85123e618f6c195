"""Which pictures families take, and conversations made to fit."""

from dataclasses import replace
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor
from transformers import AutoProcessor

from lightning_vlm.data.conversation import Conversation, Image
from tests.support.tiny.blip import ONE_PICTURE

NEEDS_PICTURES = ("paligemma", "got_ocr2", *ONE_PICTURE)
"""Families that take no text without a picture."""


def smallest_inputs(family: str, folder: Path) -> dict[str, Tensor]:
    """Token ids that a model takes without a picture, where it takes any; else with one."""
    if family not in ONE_PICTURE:
        return {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    inputs = AutoProcessor.from_pretrained(folder)(
        text=["ab"], images=[[PIL.Image.new("RGB", (64, 64))]], return_tensors="pt"
    )
    return dict(inputs)


def with_its_pictures(family: str, conversation: Conversation, picture: Image) -> Conversation:
    """A conversation with a picture in its first question, where a family needs one, and no others where it
    takes only that."""
    if family not in NEEDS_PICTURES:
        return conversation
    messages = list(conversation.messages)
    if family in ONE_PICTURE:
        for place, message in enumerate(messages):
            words = tuple(part for part in message.parts if not isinstance(part, Image))
            messages[place] = replace(message, parts=words)
    if family in ONE_PICTURE or not conversation.images:
        place = next(place for place, message in enumerate(messages) if message.role == "user")
        messages[place] = replace(messages[place], parts=(picture, *messages[place].parts))
    return replace(conversation, messages=tuple(messages))
