"""Tensors that lie over several ranks, a piece on each, as under FSDP2 and tensor parallelism."""

import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["is_spread", "local_part", "own_part"]


def is_spread(strategy: Strategy) -> bool:
    """Whether weights, gradients and the optimizer's state may lie over several ranks."""
    return isinstance(strategy, ModelParallelStrategy)


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of a plain one. It shares the memory and may be empty.

    >>> local_part(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """The elements of a tensor that are this rank's to count, so that each element is counted on one rank.

    Of copies that several ranks hold, the one counts that the first of them holds.

    Returns:
        A part that shares the tensor's memory, or one zero where nothing is this rank's to count. A zero
        changes no norm, sum, largest magnitude or number of nonzero elements.
    """
    part = local_part(tensor)
    if part.numel() and _is_owner(tensor):
        return part
    return part.new_zeros(1)


def _is_owner(tensor: Tensor) -> bool:
    if not isinstance(tensor, DTensor):
        return torch.distributed.get_rank() == 0
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None or 0 not in mesh.mesh:  # ranks of other meshes hold the same
        return False
    places = zip(coordinate, tensor.placements, strict=True)
    return all(place == 0 for place, placement in places if placement.is_replicate())
