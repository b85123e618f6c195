"""LoRA layers that change their rank: under DDP, and in a module that loads a checkpoint."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import Lora, fit_ranks
from lightning_vlm_callbacks.ddp import rewrap_ddp

__all__ = ["ranks_before_weights", "synchronise_ranks"]


def synchronise_ranks(trainer: Trainer, root: LightningModule, changed: Iterable[Lora]) -> None:
    """Under DDP: a wrapper that knows the new shapes, and the first process's weights and state in all."""
    if not rewrap_ddp(trainer, root):
        return
    for optimizer in trainer.optimizers:
        for lora in changed:
            for one in (lora.a, lora.b):
                for kept in optimizer.state.get(one, {}).values():
                    if isinstance(kept, Tensor) and kept.shape == one.shape:
                        torch.distributed.broadcast(kept, 0)


def ranks_before_weights(root: LightningModule) -> Callable[[], None]:
    """Let a module take the ranks of each checkpoint that it loads.

    Lightning calls a callback's own hook only after the weights are loaded, the module's before: so that one
    does a little more for a while.

    Returns:
        A function that unwraps it.
    """
    own, hook = vars(root).get("on_load_checkpoint"), root.on_load_checkpoint

    def with_ranks(checkpoint: dict[str, Any]) -> None:
        hook(checkpoint)
        fit_ranks(root, checkpoint)

    def undo() -> None:
        vars(root).pop("on_load_checkpoint", None)
        if own is not None:
            vars(root)["on_load_checkpoint"] = own

    vars(root)["on_load_checkpoint"] = with_ranks
    return undo
