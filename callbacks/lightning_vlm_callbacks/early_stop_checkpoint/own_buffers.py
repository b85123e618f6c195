"""Statistics of norms, of which each rank has its own where weights lie over several ranks.

Under DDP those of the first rank go to all before each forward. FSDP2 leaves each rank its own, of which a
sharded checkpoint holds one rank's.
"""

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_vlm_callbacks.shards import is_spread

__all__ = ["give_own_buffers", "own_buffers"]


def own_buffers(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """Copies of the statistics that are this rank's own; nothing where all ranks have the same."""
    if not is_spread(trainer.strategy):
        return {}
    return {name: buffer.detach().cpu().clone() for name, buffer in _statistics(module).items()}


def give_own_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Give a rank back what `own_buffers` gave on it."""
    here = _statistics(module)
    for name, buffer in saved.items():
        if name in here:
            here[name].copy_(buffer)


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: buffer
        for place, owner in module.named_modules()
        if isinstance(owner, _NormBase)
        for name, buffer in owner.named_buffers(place, recurse=False)
    }
