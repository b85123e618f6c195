"""Masks that a model should make: where their tokens and those of their pictures are, and what is right."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 64
"""Masks are learned and made at so many pixels to a side, stretched over what the model sees."""


class PictureGrid(NamedTuple):
    """The tokens of a picture in a sample.

    Args:
        tokens: Tensor of shape [rows * columns], int64: their places, row by row.
        rows: How many rows they make.
        columns: How many columns.
    """

    tokens: Tensor
    rows: int
    columns: int


class Masks(NamedTuple):
    """The masks of answers. All of it is whole numbers, which no precision of a Trainer rounds.

    Args:
        positions: Tensor of shape [masks], int64: the place of each mask's token; in a batch that in its
            flattened rows.
        tokens: Tensor of shape [tokens], int64: the places of the tokens of each mask's picture, mask after
            mask, row by row.
        of: Tensor of shape [tokens], int64: whose they are.
        starts: Tensor of shape [masks], int64: where those of each mask begin in `tokens`.
        grids: Tensor of shape [masks, 2], int64: how many rows and columns they make.
        targets: Tensor of shape [masks, side, side], uint8: 1 where a mask should be, in what the model sees.
        is_box: Tensor of shape [masks], uint8: 1 where the target is a box around what isn't known better.
    """

    positions: Tensor
    tokens: Tensor
    of: Tensor
    starts: Tensor
    grids: Tensor
    targets: Tensor
    is_box: Tensor

    @classmethod
    def on(
        cls,
        positions: Tensor,
        pictures: Sequence[PictureGrid],
        targets: Tensor | None = None,
        is_box: Tensor | None = None,
    ) -> "Masks":
        """Masks, each on its picture.

        Args:
            positions: As above.
            pictures: That of each mask.
            targets: As above; None where they aren't known.
            is_box: As above; None is no box.

        >>> picture = PictureGrid(torch.tensor([2, 3, 4, 5]), 2, 2)
        >>> masks = Masks.on(torch.tensor([7, 9]), [picture, picture])
        >>> masks.starts.tolist(), masks.of.tolist()
        ([0, 4], [0, 0, 0, 0, 1, 1, 1, 1])
        """
        lengths = torch.tensor([len(picture.tokens) for picture in pictures], dtype=torch.int64)
        count = len(pictures)
        return cls(
            positions=positions,
            tokens=torch.cat([picture.tokens for picture in pictures]),
            of=torch.arange(count).repeat_interleave(lengths),
            starts=lengths.cumsum(0) - lengths,
            grids=torch.tensor([(picture.rows, picture.columns) for picture in pictures], dtype=torch.int64),
            targets=torch.zeros(count, SIDE, SIDE, dtype=torch.uint8) if targets is None else targets,
            is_box=torch.zeros(count, dtype=torch.uint8) if is_box is None else is_box,
        )


def join_masks(of_samples: Sequence[Masks | None], starts: Sequence[int]) -> Masks | None:
    """The masks of samples as those of a batch; None where no sample has any.

    Args:
        of_samples: Of each sample.
        starts: Where each sample begins in the flattened rows of the batch.
    """
    moved = []
    masks_before = tokens_before = 0
    for one, start in zip(of_samples, starts, strict=True):
        if one is None:
            continue
        moved.append(
            one._replace(
                positions=one.positions + start,
                tokens=one.tokens + start,
                of=one.of + masks_before,
                starts=one.starts + tokens_before,
            )
        )
        masks_before += len(one.positions)
        tokens_before += len(one.tokens)
    if not moved:
        return None
    return Masks(*(torch.cat(column) for column in zip(*moved, strict=True)))
