"""What several callbacks need of a run, refused in one line where it isn't so.

They need Lightning's own Trainer, whole gradients on each rank, one gradient for each step, and parameters
that exist.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = [
    "need_initialized",
    "need_lightning",
    "need_one_closure",
    "need_one_optimizer_inside",
    "need_whole_steps",
    "several_closures",
]


def need_lightning(who: str, trainer: Trainer) -> None:
    """Refuse a Trainer of the package `pytorch_lightning`, whose classes aren't those of `lightning`.

    Raises:
        MisconfigurationException: It is one. The message says what to import.
    """
    if any(kind.__module__.split(".")[0] == "pytorch_lightning" for kind in type(trainer).__mro__):
        raise MisconfigurationException(
            f"{who}: found a Trainer of pytorch_lightning, expected one of lightning; import Trainer and "
            "LightningModule from lightning.pytorch instead"
        )


def need_whole_steps(who: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuse at setup what would be silently wrong.

    Args:
        who: The callback that needs it.
        trainer: Whose run it is.
        module: That it trains.

    Raises:
        MisconfigurationException: A Trainer of another package, a strategy other than one device or DDP, or
            manual optimization.
    """
    need_lightning(who, trainer)
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(strategy, DeepSpeedStrategy):  # it inherits from DDPStrategy
        raise MisconfigurationException(
            f"{who}: found strategy {type(strategy).__name__}, with which no rank may have whole parameters "
            "and gradients; expected one device or DDP"
        )
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{who}: found manual optimization, where a batch may have several steps, clipped anywhere; "
            "expected automatic_optimization = True"
        )


def need_initialized(who: str, module: nn.Module) -> None:
    """Refuse a lazy module that hasn't seen a batch yet, when training begins.

    Raises:
        MisconfigurationException: A parameter or buffer has no shape yet.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise MisconfigurationException(
            f"{who}: found {lazy[0]} without a shape, as its lazy module has seen no batch yet; run the "
            "module on one in its `setup`, or give the layer its size"
        )


def need_one_optimizer_inside(who: str, optimizers: Sequence[Optimizer]) -> None:
    """Refuse an optimizer that hands its steps to another one, whose groups and state can't be reached.

    Raises:
        MisconfigurationException: There is one, as in many implementations of SAM and Lookahead.
    """
    for optimizer in optimizers:
        for name, value in vars(optimizer).items():
            several = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(inner, Optimizer) for inner in several):
                raise MisconfigurationException(
                    f"{who}: found optimizer {type(optimizer).__name__}, whose {name} is an optimizer with "
                    "groups and state of its own, which can't be reached; use one that makes its own steps"
                )


def need_one_closure(who: str, optimizers: Sequence[Optimizer]) -> None:
    """Refuse LBFGS when training begins; others show themselves only in a step: see `several_closures`.

    Raises:
        MisconfigurationException: An optimizer computes several gradients in a step.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise several_closures(who, optimizer)


def several_closures(who: str, optimizer: Optimizer) -> MisconfigurationException:
    """The error for an optimizer such as LBFGS or SAM, which asks for the gradient again within a step."""
    return MisconfigurationException(
        f"{who}: found optimizer {type(optimizer).__name__}, which computes several gradients in a step, "
        "each at other weights; expected an optimizer that calls its closure once, such as AdamW"
    )
