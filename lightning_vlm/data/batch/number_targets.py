"""What a loss needs to know of each token of a coordinate, found while a batch is on the CPU."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.batch.coordinates import Coordinates
from lightning_vlm.data.boxes.number_tokens import NumberTokens

AXES = 4
"""Of a box; a point uses two of them."""


class NumberTargets(NamedTuple):
    """The tokens of coordinates among the targets of a batch.

    Args:
        places: Tensor of shape [numbers], int64: which of the targets each token is.
        values: Tensor of shape [numbers], float32: the number that the token itself writes, such as 7.
        digits: Tensor of shape [numbers], int64: how many digits it has; 0 for a bin.
        worth: Tensor of shape [numbers], float32: how much of the picture the coordinate grows by if the
            token's value grows by one.
        behind: Tensor of shape [numbers], float32: what the digits behind it add to its value: 0.25 for the
            1 of 125.
        bin: Tensor of shape [numbers], float32: by how much its value grows with the last digit of its
            number: 0.01 for the 1 of 125, 1 for the 5 and for a bin.
        leads: Tensor of shape [numbers], bool: whether it begins a number of several digits, not with a 0.
        share: Tensor of shape [numbers], float32: one over the number of tokens that its box has here.
        axes: Tensor of shape [numbers], int64: its place in the flattened `targets`.
        targets: Tensor of shape [items, 4], float32: each box in fractions of what the model sees; the last
            two of a point are NaN.
        kinds: The numbers of digits that there are.
    """

    places: Tensor
    values: Tensor
    digits: Tensor
    worth: Tensor
    behind: Tensor
    bin: Tensor
    leads: Tensor
    share: Tensor
    axes: Tensor
    targets: Tensor
    kinds: tuple[int, ...]


def find_number_targets(
    coordinates: Coordinates,
    input_ids: Tensor,
    positions: Tensor,
    tokens: Mapping[int, NumberTokens],
) -> NumberTargets | None:
    """The tokens of coordinates that are learned; None if there are none.

    Args:
        coordinates: Of a batch.
        input_ids: Tensor of shape [tokens], int64: the batch's, flattened.
        positions: Tensor of shape [targets], int64, increasing: where each target is predicted.
        tokens: The tokens that numbers are made of, by how many digits they have.

    >>> from lightning_vlm.data.batch.coordinates import NumberToken
    >>> number = Coordinates.of([NumberToken(1, 0, 0, 0.1, 1), NumberToken(2, 0, 0, 0.01, 1)], [(0.25, 0.5)])
    >>> digits = {1: NumberTokens(torch.arange(10), torch.arange(10.0))}
    >>> found = find_number_targets(number, torch.tensor([0, 2, 5]), torch.tensor([0, 1]), digits)
    >>> found.values, found.behind, found.bin
    (tensor([2., 5.]), tensor([0.5000, 0.0000]), tensor([0.1000, 1.0000]))
    """
    # In the order of the text, one number after the other.
    order = torch.argsort(coordinates.positions)
    axes = coordinates.item * AXES + coordinates.axis
    order = order[torch.argsort(axes[order], stable=True)]
    axes, digits = axes[order], coordinates.digits[order].long()
    places = coordinates.positions[order]
    values = _values(input_ids[places], digits, tokens)
    worth = coordinates.worth[order].double()

    _, of_number, lengths = axes.unique_consecutive(return_inverse=True, return_counts=True)
    last = lengths.cumsum(0) - 1
    until = (values.nan_to_num() * worth).cumsum(0)
    behind = (until[last][of_number] - until) / worth
    begins = torch.zeros_like(of_number, dtype=torch.bool)
    begins[last - lengths + 1] = True
    several = (lengths[of_number] > 1) | (digits > 1)

    predicted = torch.searchsorted(positions, places - 1).clamp(max=max(len(positions) - 1, 0))
    learned = values.isfinite()
    learned &= positions[predicted] == places - 1 if len(positions) else False
    (kept,) = learned.nonzero(as_tuple=True)
    if not len(kept):
        return None
    items = coordinates.item[order][kept]
    return NumberTargets(
        places=predicted[kept],
        values=values[kept].float(),
        digits=digits[kept],
        worth=worth[kept].float(),
        behind=behind[kept].float(),
        bin=(worth[last][of_number] / worth)[kept].float(),
        leads=(begins & several & ~has_zero_in_front(values, digits))[kept],
        share=1 / torch.bincount(items)[items].float(),
        axes=axes[kept],
        targets=coordinates.targets,
        kinds=tuple(digits[kept].unique().tolist()),
    )


def has_zero_in_front(values: Tensor, digits: Tensor) -> Tensor:
    """Which tokens begin with the digit 0.

    Args:
        values: Tensor of any shape: the numbers that tokens write.
        digits: Tensor of the same shape, int64: how many digits they have.

    >>> has_zero_in_front(torch.tensor([0.0, 5.0, 45.0, 145.0]), torch.tensor([1, 1, 3, 3]))
    tensor([ True, False,  True, False])
    """
    return values < 10.0 ** (digits - 1)


def _values(ids: Tensor, digits: Tensor, tokens: Mapping[int, NumberTokens]) -> Tensor:
    """The number that each token writes: a Tensor of shape [ids], float64; NaN where it is no such token."""
    values = torch.full(ids.shape, torch.nan, dtype=torch.float64, device=ids.device)
    for of_kind, known in tokens.items():
        known_ids, known_values = known.ids.to(ids.device), known.values.to(ids.device)
        in_order = known_ids.argsort()
        found = in_order[torch.searchsorted(known_ids[in_order], ids).clamp(max=len(in_order) - 1)]
        are_known = (known_ids[found] == ids) & (digits == of_kind)
        values[are_known] = known_values[found][are_known].double()
    return values
