"""Where LoRA layers may change their rank; under DDP; and in a module that loads a checkpoint."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_vlm_callbacks.lora_layers import Lora, fit_ranks

__all__ = ["ranks_before_weights", "refuse_unsuited", "wrap_anew"]


def refuse_unsuited(trainer: Trainer, root: LightningModule) -> None:
    """Only where parameters are whole, and steps can be told.

    Raises:
        MisconfigurationException: Says what it is.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(strategy, DeepSpeedStrategy):  # which is a DDPStrategy by name only
        raise MisconfigurationException(
            f"AdaptiveLoRARank: found strategy {type(strategy).__name__}, with which no rank has whole "
            "parameters that could be given another shape; expected one device or DDP"
        )
    if not root.automatic_optimization:
        raise MisconfigurationException(
            "AdaptiveLoRARank: found manual optimization, where steps can't be told; expected "
            "automatic_optimization = True"
        )


def wrap_anew(trainer: Trainer, root: LightningModule, changed: Iterable[Lora]) -> None:
    """Under DDP: a wrapper that knows the new shapes, and the first process's state in all.

    The old wrapper goes, and with it its hooks on parameters: it would wait for gradients of the old shapes.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    strategy.model = root
    strategy.configure_ddp()  # which sends the parameters
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
        What makes an end of it.
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
