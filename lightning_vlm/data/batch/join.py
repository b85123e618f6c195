"""Tensors of samples joined to those of a batch: padded to one length, or packed into one row."""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_vlm.data.render.example import Example
from lightning_vlm.errors import UserError

NUMBERS = {"image_token_pooling": "pixel_values", "video_token_pooling": "pixel_values_videos"}
"""Inputs that are numbers of patches, counted from the first one of a sample, and the patches
themselves, of shape [crops, patches, ...]. A number below 0 is none (Molmo 2)."""
IN_ONE_ROW = {"target_sizes": "pixel_values"}
"""Inputs that say how large pictures are whose patches lie side by side in one long row, and these patches,
of shape [1, channels, height of a patch, pixels]. The model reads the first row only (MiniCPM-V)."""
Side: TypeAlias = Literal["left", "right"]


def join_padded(examples: Sequence[Example], pad_token_id: int, side: Side) -> dict[str, Tensor]:
    """The inputs of samples, padded to one length. A sample without pictures lacks some of them."""
    if not examples:
        return {}
    inputs = {"input_ids": pad([example.input_ids for example in examples], pad_token_id, side)}
    lengths = [len(example.input_ids) for example in examples]
    values_by_name = _values_by_name(examples)
    _count_on(values_by_name)
    by_token = {name for name, values in values_by_name.items() if _are_by_token(values, lengths)}
    # Where tokens say which pictures of their row they see (Mllama), each row must have some.
    each_needs_pictures = any(_first(values_by_name[name]).ndim > 2 for name in by_token)
    in_one_row = _in_one_row(values_by_name)
    for name, values in values_by_name.items():
        if name in in_one_row:
            inputs[name] = _one_row(values)
        elif name in by_token:
            inputs[name] = pad(_rows_by_token(values, lengths), 0, side)
        else:
            inputs[name] = _join_pictures(values, each_needs_pictures)
    return inputs


def join_packed(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The inputs of samples, one after the other in one row, without padding and without a mask.

    Raises:
        UserError: Tokens of this family see pictures by a mask of rows.
    """
    inputs = {"input_ids": torch.cat([example.input_ids for example in examples])[None]}
    lengths = [len(example.input_ids) for example in examples]
    values_by_name = _values_by_name(examples)
    _count_on(values_by_name)
    in_one_row = _in_one_row(values_by_name)
    for name, values in values_by_name.items():
        if name in in_one_row:
            inputs[name] = _one_row(values)
        elif not _are_by_token(values, lengths):
            inputs[name] = _join_pictures(values, each_needs_pictures=False)
        elif name != "attention_mask":
            if _first(values).ndim > 2:
                raise UserError(
                    f"data.batching: found packed, but {name} of this model says which pictures each row "
                    "sees; set data.batching to tokens"
                )
            inputs[name] = torch.cat(_rows_by_token(values, lengths))[None]
    return inputs


def pad(rows: Sequence[Tensor], value: int, side: Side) -> Tensor:
    """Pad tensors of shape [length, ...] to one of shape [batch, longest, ...]."""
    if not rows:
        return torch.empty(0, 0, dtype=torch.int8)
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _values_by_name(examples: Sequence[Example]) -> dict[str, list[Tensor | None]]:
    """Each input of the processor by its name: its value in each sample, None where a sample lacks it."""
    values_by_name: dict[str, list[Tensor | None]] = {}
    for example in examples:
        for name in example.inputs:
            if name not in values_by_name:
                values_by_name[name] = [other.inputs.get(name) for other in examples]
    return values_by_name


def _count_on(values_by_name: dict[str, list[Tensor | None]]) -> None:
    """Let numbers of patches go on from sample to sample, as the patches will. In place."""
    for name, patches in NUMBERS.items():
        if name not in values_by_name:
            continue
        before = 0
        counted: list[Tensor | None] = []
        for numbers, pixels in zip(values_by_name[name], values_by_name[patches], strict=True):
            if numbers is None or pixels is None:
                counted.append(numbers)
                continue
            counted.append(numbers.where(numbers < 0, numbers + before))
            before += pixels.shape[0] * pixels.shape[1]
        values_by_name[name] = counted


def _in_one_row(names: Iterable[str]) -> set[str]:
    """Those of some inputs that lie in one long row."""
    given = set(names)
    return {patches for sizes, patches in IN_ONE_ROW.items() if sizes in given}


def _one_row(values: Sequence[Tensor | None]) -> Tensor:
    """Patches of all pictures in one row, in the order of samples."""
    return torch.cat([value for value in values if value is not None], dim=-1)


def _are_by_token(values: Sequence[Tensor | None], lengths: Sequence[int]) -> bool:
    """Whether each value has the shape [1, length, ...] of its sample."""
    for value, length in zip(values, lengths, strict=True):
        if value is not None and value.shape[:2] != (1, length):
            return False
    return True


def _first(values: Sequence[Tensor | None]) -> Tensor:
    return next(value for value in values if value is not None)


def _rows_by_token(values: Sequence[Tensor | None], lengths: Sequence[int]) -> list[Tensor]:
    """Values of each token, such as `attention_mask`, of each sample. One without them gets zeros."""
    like = _first(values)
    shape = _largest([value.shape[2:] for value in values if value is not None])
    rows = []
    for value, length in zip(values, lengths, strict=True):
        row = like.new_zeros(length, *shape) if value is None else _fill(value[0], shape)
        rows.append(row)
    return rows


def _join_pictures(values: Sequence[Tensor | None], each_needs_pictures: bool) -> Tensor:
    """Join values of pictures. Where dimensions after the first one differ (SmolVLM), zeros fill them up."""
    given = [value for value in values if value is not None]
    if each_needs_pictures:
        missing = given[0].new_zeros(1, *given[0].shape[1:])
        given = [missing if value is None else value for value in values]
    shape = _largest([value.shape[1:] for value in given])
    return torch.cat([_fill(value, shape) for value in given])


def _largest(shapes: Sequence[torch.Size]) -> list[int]:
    """The size that each dimension needs to hold all shapes."""
    return [max(sizes) for sizes in zip(*shapes, strict=True)]


def _fill(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Pad a value with zeros to a shape, in all dimensions but the first."""
    filled = value.new_zeros(len(value), *shape)
    corner = tuple(slice(size) for size in value.shape)
    filled[corner] = value
    return filled
