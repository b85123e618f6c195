"""What callbacks need under DDP and FSDP2."""

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

__all__ = ["gather_nothing", "reread_fsdp2", "rewrap_ddp", "sum_over_ranks"]


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


def gather_nothing(module: nn.Module) -> None:
    """Let each rank hold its pieces alone, as between two steps.

    After a validation FSDP2 may keep the outermost unit's weights gathered, and a module's parameters are
    then others than those of the optimizer. Without FSDP2 it does nothing.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def reread_fsdp2(module: nn.Module) -> None:
    """Let FSDP2 look again at what trains, after parameters have begun or ceased to train.

    Each unit takes `requires_grad` of its pieces over whenever it gathers them. But it looks only when it is
    first used for the dtype in which gradients are summed, and a unit that was frozen then has none: under
    mixed precision its gradients would come in the wrong one. All ranks must call this; without FSDP2 it
    does nothing.
    """
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.unshard()
            unit.reshard()


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
