"""LoRA layers that change their rank: under DDP, and in a module that loads a checkpoint."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import LoraLayer, fit_ranks
from lightning_vlm_callbacks.ddp import rewrap_ddp

__all__ = ["ranks_before_weights", "synchronise_ranks"]


def synchronise_ranks(trainer: Trainer, root: LightningModule, changed: Iterable[LoraLayer]) -> None:
    """Under DDP: a wrapper that knows the new shapes, and the first process's weights and state in all."""
    if not rewrap_ddp(trainer, root):
        return
    parameters = [parameter for lora in changed for parameter in (lora.a, lora.b)]
    for optimizer in trainer.optimizers:
        for parameter in parameters:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    torch.distributed.broadcast(value, 0)


def ranks_before_weights(root: LightningModule) -> Callable[[], None]:
    """Let a module take the ranks of each checkpoint that it loads.

    Lightning calls a callback's `on_load_checkpoint` only after the weights are loaded, but the module's
    before. So the module's own hook is wrapped for a while.

    Returns:
        A function that restores the module's hook.
    """
    replaced = vars(root).get("on_load_checkpoint")
    hook = root.on_load_checkpoint

    def with_ranks(checkpoint: dict[str, Any]) -> None:
        hook(checkpoint)
        fit_ranks(root, checkpoint)

    def undo() -> None:
        vars(root).pop("on_load_checkpoint", None)
        if replaced is not None:
            vars(root)["on_load_checkpoint"] = replaced

    vars(root)["on_load_checkpoint"] = with_ranks
    return undo
