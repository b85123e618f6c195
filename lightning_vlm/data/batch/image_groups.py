"""Rows of a batch that may go through a model together."""

import torch
from torch import Tensor


def split_by_image_count(inputs: dict[str, Tensor]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Split a batch into groups of rows that don't change one another in the model.

    Most families have one group. Where tokens see pictures by cross-attention (Mllama), the rows of a group
    have the same number of pictures. A token before the first picture, or in a row without any, sees the mean
    of all pictures there, so it would see those that pad its row as well.

    Args:
        inputs: What the model's forward takes.
    Returns:
        The rows of each group, an int64 tensor, and their inputs, with no more pictures than the rows have.
    """
    input_ids = inputs["input_ids"]
    by_token = {name: value for name, value in inputs.items() if value.shape[:2] == input_ids.shape}
    masks = [value for value in by_token.values() if value.ndim > 2]
    if not masks:
        return [(torch.arange(len(input_ids)), inputs)]
    mask = masks[0]  # [batch, length, pictures, tiles]
    is_seen = mask.flatten(3).any(3).any(1)  # [batch, pictures]
    counts = is_seen.sum(1).cpu()
    groups = []
    for count in counts.unique().tolist():
        (rows,) = (counts == count).nonzero(as_tuple=True)
        group = {}
        for name, value in inputs.items():
            values = value[rows.to(value.device)]
            if name in by_token and value.ndim == 2:
                group[name] = values
            elif count and name in by_token:
                group[name] = values[:, :, :count]
            elif count:
                group[name] = values[:, :count]
        groups.append((rows, group))
    return groups
