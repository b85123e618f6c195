"""From what a served model wrote to boxes in pixels."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
from transformers import ProcessorMixin

from lightning_vlm.data.boxes.of_model import codec_for
from lightning_vlm.data.boxes.pixels import as_row
from lightning_vlm.data.boxes.views import view_of
from lightning_vlm.data.render.special_tokens import any_of
from lightning_vlm.data.upright_size import upright_size


def boxes_in_pixels(
    text: str, processor: ProcessorMixin, pictures: Sequence[PIL.Image.Image]
) -> list[dict[str, Any]]:
    """The boxes, points and regions in what a model wrote, in pixels of the pictures as they came.

    Args:
        text: What it wrote, decoded with `skip_special_tokens=False`: some families mark boxes by special
            tokens.
        processor: Of the exported model; it says which format the model has learned.
        pictures: Of the conversation, as they were given to the processor.

    Returns:
        For each a mapping with its numbers as `box`, `point` or `region`, its `label` if it has one, and the
        number of its picture as `image`, from 0.
    """
    codec = codec_for(processor).codec
    tokenizer: Any = processor.tokenizer
    others = set(tokenizer.all_special_tokens).difference(codec.tokens)
    views = [view_of(processor, upright_size(picture)) for picture in pictures]
    found = codec.read(any_of(others).sub("", text), views)
    return [as_row(item, views) for item in found.items]
