"""What callbacks need under DDP."""

import torch
import torch.distributed
from torch import Tensor

__all__ = ["sum_over_ranks"]


def sum_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Sums of tensors over all ranks, by one collective. All ranks must call it, with the same shapes.

    Args:
        tensors: One or more on one device. They aren't changed.

    Returns:
        New tensors of the same shapes, in the first one's dtype.
    """
    flat = torch.cat([tensor.flatten().to(tensors[0].dtype) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
