"""What callbacks need under DDP."""

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

__all__ = ["rewrap_ddp", "sum_over_ranks"]


def rewrap_ddp(trainer: Trainer, module: LightningModule) -> bool:
    """Make a new DDP wrapper, after parameters have begun or ceased to train, or have changed their shapes.

    The old wrapper's hooks on parameters go with it. The new one sends the first process's parameters and
    buffers to all. All ranks must call this; without DDP it does nothing.

    Returns:
        Whether the run uses DDP.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return False
    strategy.model = module
    strategy.configure_ddp()
    return True


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
