"""Train and eval modes that follow from what trains, and hold against calls of `train()`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["eval_mode", "freeze_statistics", "hold_modes", "release_modes", "set_modes", "without_dropout"]

_STATISTICS = "_has_frozen_statistics"


def set_modes(module: nn.Module, outer: bool = True) -> None:
    """Train mode for each module with something that trains in it, eval mode for one whose parameters are all
    frozen. A module without parameters, such as dropout, goes with the one that it is in. Batch norms whose
    statistics are frozen (see `freeze_statistics`) are always in eval mode, though their weights may train.

    Args:
        module: Any module.
        outer: The mode of the module if it has no parameters.

    >>> frozen = nn.Sequential(nn.Linear(1, 1).requires_grad_(False), nn.Dropout())
    >>> model = nn.ModuleList([frozen, nn.Linear(1, 1)])
    >>> set_modes(model)
    >>> [name for name, module in model.named_modules() if module.training]
    ['', '1']
    """
    trains = [parameter.requires_grad for parameter in module.parameters()]
    module.training = (any(trains) if trains else outer) and _STATISTICS not in vars(module)
    for child in module.children():
        set_modes(child, module.training)


def freeze_statistics(module: nn.Module) -> None:
    """Have `set_modes` and `hold_modes` keep every batch norm in eval mode, also where its weights train.

    In train mode it mixes the samples of a batch, and its running statistics drift with small batches, of
    other sizes on each rank. A pretrained model's are better kept.

    Args:
        module: Any module. Batch norms without running statistics, which know no other way, stay as they are.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> freeze_statistics(model)
    >>> set_modes(model)
    >>> [child.training for child in model]
    [True, False]
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            vars(part)[_STATISTICS] = True


def hold_modes(module: nn.Module) -> None:
    """Set modes as `set_modes` does, and keep frozen parts in eval mode until `release_modes`.

    Many projects call `self.train()` as an epoch or a batch starts. The norm statistics of frozen parts would
    then move, and their dropout would be on. So a frozen module's `train()` has no effect while it is held,
    whichever module it is called through, and norms and dropout also enter eval mode before each forward, in
    case something sets their `training` itself. What trains can be put into either mode.

    Args:
        module: Any module. Call it again when what trains has changed.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1).requires_grad_(False))
    >>> hold_modes(model)
    >>> [child.training for child in model.train()]
    [True, False]
    >>> release_modes(model)
    >>> [child.training for child in model.train()]
    [True, True]
    """
    release_modes(module)
    set_modes(module)
    for part in module.modules():
        if not part.training:
            part.train = _StayInEval(part)  # type: ignore[method-assign]


def release_modes(module: nn.Module) -> None:
    """Let `train()` work again. Modes stay as they are until it is called."""
    for part in module.modules():
        held = part.__dict__.get("train")
        if isinstance(held, _StayInEval):
            held.remove()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while. Afterwards each part of the module is in the mode that it was in.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with eval_mode(model):
    ...     [part.training for part in model.modules()]
    [False, False, False]
    >>> [part.training for part in model.modules()]
    [True, True, False]
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Forward passes that draw nothing and move no statistics, for a while. All other parts stay in their
    modes: gradient checkpointing, for one, acts in train mode only.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    >>> with without_dropout(model):
    ...     [part.training for part in model]
    [True, False]
    >>> model[1].training
    True
    """
    drawing = [part for part in module.modules() if part.training and _draws_or_counts(part)]
    for part in drawing:
        part.training = False
    try:
        yield
    finally:
        for part in drawing:
            part.training = True


def _draws_or_counts(part: nn.Module) -> bool:
    """Whether a module's forward depends on its mode; some look at it themselves, and have a rate."""
    if isinstance(part, _NormBase | _DropoutNd):
        return True
    rates = [value for name, value in vars(part).items() if "drop" in name]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


class _StayInEval:
    """Stands in for the `train` method of a frozen module. Unlike a local function it can be pickled."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._hook: Any = None
        if isinstance(module, _NormBase | _DropoutNd):
            self._hook = module.register_forward_pre_hook(_enter_eval)

    def __call__(self, mode: bool = True) -> nn.Module:
        self._module.training = False
        for child in self._module.children():
            child.train(False)
        return self._module

    def remove(self) -> None:
        del self._module.__dict__["train"]
        if self._hook is not None:
            self._hook.remove()


def _enter_eval(module: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():  # a compiled graph keeps the mode that it was compiled in
        module.training = False
