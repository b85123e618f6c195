"""Rows of a batch that may go through a model together."""

from collections.abc import Mapping

import torch
from torch import Tensor


def image_counts(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """How many pictures each row sees, where tokens see pictures by cross-attention (Mllama); None elsewhere.

    Args:
        inputs: What the model's forward takes. On a device the host waits for it.

    Returns:
        Tensor of shape [batch], int64, on the CPU.
    """
    for value in _by_token(inputs).values():
        if value.ndim > 2:  # [batch, length, pictures, tiles]
            is_seen = value.flatten(3).any(3).any(1)  # [batch, pictures]
            return is_seen.sum(1).cpu()
    return None


def split_by_image_count(
    inputs: Mapping[str, Tensor], counts: Tensor | None = None
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Split a batch into groups of rows that don't change one another in the model.

    Most families have one group. Where tokens see pictures by cross-attention (Mllama), the rows of a group
    have the same number of pictures. A token before the first picture, or in a row without any, sees the mean
    of all pictures there, so it would see those that pad its row as well.

    Args:
        inputs: What the model's forward takes.
        counts: As from `image_counts`; None finds them.

    Returns:
        The rows of each group, an int64 tensor on the CPU, and their inputs, with no more pictures than the
        rows have.
    """
    input_ids = inputs["input_ids"]
    if counts is None:
        counts = image_counts(inputs)
    if counts is None:
        return [(torch.arange(len(input_ids)), dict(inputs))]
    by_token = _by_token(inputs)
    groups = []
    for count in counts.unique().tolist():
        (rows,) = (counts == count).nonzero(as_tuple=True)
        places = rows.to(input_ids.device, non_blocking=True)
        group = {}
        for name, value in inputs.items():
            values = value[places]
            if name in by_token and value.ndim == 2:
                group[name] = values
            elif count and name in by_token:
                group[name] = values[:, :, :count]
            elif count:
                group[name] = values[:, :count]
        groups.append((rows, group))
    return groups


def _by_token(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs that have a value, or several, for each token."""
    shape = inputs["input_ids"].shape
    return {name: value for name, value in inputs.items() if value.shape[:2] == shape}
