"""The masks of what a model wrote."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.data.batch.masks import Masks, PictureGrid
from lightning_vlm.data.boxes.areas import outline_of
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.boxes.segments import SEG, Segments
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.boxes.views import view_of
from lightning_vlm.data.parts import Region
from lightning_vlm.data.render.picture_grids import picture_grids
from lightning_vlm.models.mask_head import MaskHead


class _Wanted(NamedTuple):
    """A mask that is to be made.

    Args:
        place: Where its token is in the flattened rows of prompts and answers.
        grid: The tokens of its picture there.
        label: What is said to be there.
        image: The number of its picture.
        view: How that is seen.
    """

    place: int
    grid: PictureGrid
    label: str | None
    image: int
    view: View


def found_by_masks(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    head: MaskHead,
    inputs: Mapping[str, Tensor],
    ids: Tensor,
    answers: Sequence[str],
    readers: Sequence[BoxReader | None],
) -> list[Found | None]:
    """The regions of answers: of the hidden state of each `<seg>` a mask is made, by one more forward pass.

    Args:
        model: That wrote the answers.
        processor: Of the model.
        head: Makes the masks.
        inputs: The prompts, padded on the left: what the model's forward takes.
        ids: Tensor of shape [prompts, length], int64: prompts and answers.
        answers: As texts, without reasoning before them.
        readers: Of the prompts.

    Returns:
        For each prompt its regions in fractions of the pictures as they came, each with one outline, and what
        has no mask; None where nothing is to be read.
    """
    wanted: list[list[_Wanted]] = []
    for row, (answer, reader) in enumerate(zip(answers, readers, strict=True)):
        wanted.append([] if reader is None else _wanted(processor, inputs, ids, row, answer, reader))
    every = [one for of_row in wanted for one in of_row]
    masks = iter(_made(model, processor, head, inputs, ids, every) if every else ())
    found: list[Found | None] = []
    for answer, reader, of_row in zip(answers, readers, wanted, strict=True):
        if reader is None or not of_row:
            found.append(None if reader is None else reader.read(answer))
        else:
            found.append(_found([(one, next(masks)) for one in of_row]))
    return found


@torch.no_grad()
def outlines_in_pixels(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    head: MaskHead,
    inputs: Mapping[str, Tensor],
    ids: Tensor,
    pictures: Sequence[PIL.Image.Image],
) -> list[tuple[str | None, list[float]]]:
    """The masks of one answer: the label and the outline x1, y1, x2, y2, ... of each, in pixels.

    Args:
        model: That wrote it.
        processor: Of the model.
        head: Of the model, as from `load_mask_head`.
        inputs: What the processor made of one prompt.
        ids: Tensor of shape [1, length], int64: prompt and answer, as from `generate`.
        pictures: Of the prompt, upright, in reading order.
    """
    views = [view_of(processor, picture.size) for picture in pictures]
    grids = picture_grids(processor, inputs["input_ids"][0], inputs, len(pictures))
    new = ids[0, inputs["input_ids"].shape[1] :]
    answer = processor.tokenizer.decode(new, skip_special_tokens=True)
    reader = BoxReader(Segments(), views, None, grids)
    (found,) = found_by_masks(model, processor, head, inputs, ids, [answer], [reader])
    outlines = []
    for item in found.items if found else ():
        size = views[item.image or 0].size
        pixels = [number * size[place % 2] for place, number in enumerate(item.numbers)]
        outlines.append((item.label, pixels))
    return outlines


def _wanted(
    processor: Any, inputs: Mapping[str, Tensor], ids: Tensor, row: int, answer: str, reader: BoxReader
) -> list[_Wanted]:
    """The masks of one answer, whose picture there is."""
    if not isinstance(reader.codec, Segments):
        return []
    start, length = inputs["input_ids"].shape[1], ids.shape[1]
    seg = processor.tokenizer.convert_tokens_to_ids(SEG)
    places = [start + place for place, token in enumerate(ids[row, start:].tolist()) if token == seg]
    named = reader.codec.named(answer, reader.views)
    first = row * length + int((inputs["attention_mask"][row] == 0).sum())  # behind the padding
    wanted = []
    # What was written before the answer, such as reasoning, may have tokens too.
    for place, (label, image) in zip(reversed(places), reversed(named), strict=False):
        if 0 <= image < len(reader.grids):
            grid = reader.grids[image]
            moved = grid._replace(tokens=grid.tokens + first)
            wanted.append(_Wanted(row * length + place, moved, label, image, reader.views[image]))
    return wanted[::-1]


def _made(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    head: MaskHead,
    inputs: Mapping[str, Tensor],
    ids: Tensor,
    wanted: Sequence[_Wanted],
) -> np.ndarray:
    """The masks: an array of shape [masks, side, side], bool."""
    options = {**inputs, "input_ids": ids}
    more = ids.shape[1] - inputs["input_ids"].shape[1]
    for name, value in inputs.items():
        if name != "input_ids" and value.shape == inputs["input_ids"].shape:
            # An answer is seen like in training: PaliGemma's answers have type 1.
            is_type_of_answer = name == "token_type_ids" and "labels" in processor.model_input_names
            filled = 1 if name == "attention_mask" or is_type_of_answer else 0
            options[name] = torch.cat((value, value.new_full((len(value), more), filled)), 1)
    base: Any = getattr(model, model.base_model_prefix)
    hidden = base(**options, use_cache=False, return_dict=True).last_hidden_state
    positions = torch.tensor([one.place for one in wanted])
    masks = Masks.on(positions, [one.grid for one in wanted])
    masks = Masks(*(tensor.to(hidden.device) for tensor in masks))
    return (head(hidden, masks) > 0).cpu().numpy()


def _found(made: Sequence[tuple[_Wanted, np.ndarray]]) -> Found:
    items, faults = [], []
    for one, mask in made:
        outline = outline_of(mask)
        if outline is None:
            faults.append("an empty mask")
            continue
        numbers = tuple(min(max(number, 0.0), 1.0) for number in one.view.from_seen(outline))
        items.append(Region(numbers, one.label, one.image))
    return Found(tuple(items), tuple(faults))
