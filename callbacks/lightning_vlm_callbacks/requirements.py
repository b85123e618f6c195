"""Refuses runs in which a callback can't be right: each check says in one line what to change.

What a run must have: Lightning's own Trainer, gradients that the callback can read, one gradient for each
step, and parameters that exist.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

__all__ = [
    "is_whole",
    "require_full_gradients",
    "require_initialized",
    "require_known_strategy",
    "require_lightning",
    "require_plain_optimizers",
    "require_single_closure",
    "require_whole_model",
    "several_closures",
]


def require_lightning(who: str, trainer: Trainer) -> None:
    """Refuse a Trainer of the package `pytorch_lightning`, whose classes aren't those of `lightning`.

    Raises:
        MisconfigurationException: It is one. The message says what to import.
    """
    if any(kind.__module__.split(".")[0] == "pytorch_lightning" for kind in type(trainer).__mro__):
        raise MisconfigurationException(
            f"{who}: found a Trainer of pytorch_lightning, expected one of lightning; import Trainer and "
            "LightningModule from lightning.pytorch instead"
        )


def require_full_gradients(who: str, trainer: Trainer, module: LightningModule, needs_whole: str) -> None:
    """Refuse at setup a run in which a callback can't see the true gradient of each optimizer step.

    Args:
        who: The callback that needs it.
        trainer: Whose run it is.
        module: That it trains.
        needs_whole: Why each rank must hold the whole model, as the end of a sentence that begins with the
            callback's name; empty if FSDP2 (`ModelParallelStrategy`), which cuts each weight into one piece
            for each rank, is right too.

    Raises:
        MisconfigurationException: A Trainer of another package, a strategy under which the callback isn't
            right, or manual optimization.
    """
    require_lightning(who, trainer)
    if needs_whole:
        require_whole_model(who, trainer.strategy, needs_whole)
    else:
        require_known_strategy(who, trainer.strategy)
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{who}: found manual optimization, in which a batch may have several steps, or none; "
            "expected automatic_optimization=True"
        )


def require_known_strategy(who: str, strategy: Strategy) -> None:
    """Refuse strategies other than one device, DDP and FSDP2.

    Raises:
        MisconfigurationException: It is another.
    """
    if isinstance(strategy, ModelParallelStrategy) or is_whole(strategy):
        return
    raise MisconfigurationException(
        f"{who}: found trainer.strategy {type(strategy).__name__}, which joins and cuts parameters in a way "
        "of its own that callbacks can't read; choose ModelParallelStrategy (FSDP2), ddp or one device"
    )


def require_whole_model(who: str, strategy: Strategy, why: str = "") -> None:
    """Refuse strategies that split a model over ranks.

    Args:
        who: That needs the whole model.
        strategy: Of the run.
        why: As `needs_whole` of `require_full_gradients`.

    Raises:
        MisconfigurationException: It is neither one device nor DDP.
    """
    if is_whole(strategy):
        return
    reason = f". {who} {why}" if why and isinstance(strategy, ModelParallelStrategy) else ""
    raise MisconfigurationException(
        f"{who}: found trainer.strategy {type(strategy).__name__}, with which a rank may not hold the "
        f"whole model, its gradients and its optimizer's state{reason}; choose ddp or one device"
    )


def is_whole(strategy: Strategy) -> bool:
    """Whether a strategy keeps the whole model on each rank: one device and DDP."""
    keeps_all = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    return keeps_all and not isinstance(strategy, DeepSpeedStrategy)  # which inherits from DDPStrategy


def require_initialized(who: str, module: nn.Module) -> None:
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


def require_plain_optimizers(who: str, optimizers: Sequence[Optimizer]) -> None:
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


def require_single_closure(who: str, optimizers: Sequence[Optimizer]) -> None:
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
