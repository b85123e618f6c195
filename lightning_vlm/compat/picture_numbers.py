"""Numbers the pictures of each sample of a batch from 0 on in HunYuan-VL.

The last of its axes of positions is the number of a picture in its sample. transformers (5.23) counts on from
one sample of a batch to the next, so that what a model answers would depend on its neighbours.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CLASS = "HunYuanVLModel"


def install(model: Any) -> None:
    """Let the positions of each sample be found by itself, once for a class. Does nothing to other families.

    Args:
        model: As `from_pretrained` gives it.
    """
    kind = type(model.base_model)
    if kind.__name__ == _CLASS and not hasattr(kind.get_rope_index, "__wrapped__"):
        kind.get_rope_index = _one_by_one(kind.get_rope_index)


def _one_by_one(find: Callable) -> Callable:
    @functools.wraps(find)
    def find_each(
        self: Any,
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor]:
        positions, deltas = [], []
        first = 0
        for row in range(len(input_ids)):
            chosen = slice(row, row + 1)
            behind = first + _pictures(mm_token_type_ids[row])
            grid = None if image_grid_thw is None else image_grid_thw[first:behind]
            mask = None if attention_mask is None else attention_mask[chosen]
            found, delta = find(self, input_ids[chosen], mm_token_type_ids[chosen], grid, mask, **more)
            positions.append(found)
            deltas.append(delta)
            first = behind
        return torch.cat(positions, dim=1), torch.cat(deltas)

    return find_each


def _pictures(types: Tensor) -> int:
    """How many stretches of picture tokens there are in a row.

    >>> _pictures(torch.tensor([0, 1, 1, 0, 1]))
    2
    """
    is_picture = (types == 1).long()
    begins = is_picture.diff(prepend=is_picture.new_zeros(1)) == 1
    return int(begins.sum())
