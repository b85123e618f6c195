"""Where the numbers of boxes stand among the tokens of a sample or a batch, and what they should be."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Coordinates(NamedTuple):
    """The tokens of the numbers of boxes and points in answers.

    Floating-point values are kept bit by bit, because `bf16-true` and `16-true` of Lightning round all
    floating-point tensors of a batch.

    Args:
        positions: Tensor of shape [numbers], int64: the token's place; in a batch that in its flattened rows.
        item: Tensor of shape [numbers], int64: which box or point it belongs to.
        axis: Tensor of shape [numbers], int8: 0 is x1 (or x), 1 is y1 (or y), 2 is x2, 3 is y2.
        worth_bits: Tensor of shape [numbers], int32: `worth`, bit by bit.
        digits: Tensor of shape [numbers], int8: how many digits the token has; 0 for one that is a bin.
        target_bits: Tensor of shape [items, 4], int32: `targets`, bit by bit.
        left_out: How many boxes and points are not in it, because a digit of theirs shares a token with
            another character.
    """

    positions: Tensor
    item: Tensor
    axis: Tensor
    worth_bits: Tensor
    digits: Tensor
    target_bits: Tensor
    left_out: int = 0

    @classmethod
    def of(
        cls, numbers: Iterable["NumberToken"], targets: Sequence[tuple[float, ...]], left_out: int = 0
    ) -> "Coordinates":
        """From the tokens, and the numbers of each box or point in fractions of what the model sees.

        >>> tokens = [NumberToken(7, 0, 0, 0.1, 1), NumberToken(8, 0, 1, 0.01, 1)]
        >>> Coordinates.of(tokens, [(0.25, 0.5)]).targets
        tensor([[0.2500, 0.5000,    nan,    nan]])
        """
        columns = list(zip(*numbers, strict=True)) or [()] * len(NumberToken._fields)
        positions, item, axis, worth, digits = columns
        values = torch.full((len(targets), 4), torch.nan)
        for row, target in zip(values, targets, strict=True):
            row[: len(target)] = torch.tensor(target)
        return cls(
            positions=torch.tensor(positions, dtype=torch.int64),
            item=torch.tensor(item, dtype=torch.int64),
            axis=torch.tensor(axis, dtype=torch.int8),
            worth_bits=torch.tensor(worth, dtype=torch.float32).view(torch.int32),
            digits=torch.tensor(digits, dtype=torch.int8),
            target_bits=values.view(torch.int32),
            left_out=left_out,
        )

    @property
    def worth(self) -> Tensor:
        """Shape [numbers], float32: how much of the picture's whole axis the coordinate grows by if the value
        of the token grows by one."""
        return self.worth_bits.view(torch.float32)

    @property
    def targets(self) -> Tensor:
        """Shape [items, 4], float32: each box in fractions of what the model sees; a point's last are NaN."""
        return self.target_bits.view(torch.float32)


class NumberToken(NamedTuple):
    """One token of a coordinate, as `Coordinates` has them."""

    position: int
    item: int
    axis: int
    worth: float
    digits: int


def join_coordinates(of_samples: Sequence[Coordinates | None], starts: Sequence[int]) -> Coordinates | None:
    """The coordinates of samples as those of a batch; None where no sample has any.

    Args:
        of_samples: Of each sample.
        starts: Where each sample begins in the flattened rows of the batch.
    """
    given = [(one, start) for one, start in zip(of_samples, starts, strict=True) if one is not None]
    if not given:
        return None
    items_before = 0
    positions, items = [], []
    for one, start in given:
        positions.append(one.positions + start)
        items.append(one.item + items_before)
        items_before += len(one.target_bits)
    every = [one for one, _ in given]
    return Coordinates(
        positions=torch.cat(positions),
        item=torch.cat(items),
        axis=torch.cat([one.axis for one in every]),
        worth_bits=torch.cat([one.worth_bits for one in every]),
        digits=torch.cat([one.digits for one in every]),
        target_bits=torch.cat([one.target_bits for one in every]),
        left_out=sum(one.left_out for one in every),
    )
