"""A copy of a module that can run a step alone, without a trace in the run."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm_callbacks.nonfinite_guard.batches import named_tensors
from lightning_vlm_callbacks.random_states import random_state, set_random_state

__all__ = ["isolated", "isolated_copy"]


@contextmanager
def isolated(module: LightningModule) -> Iterator[LightningModule]:
    """A copy of a module, on which this rank alone may run a step.

    Afterwards parameters, gradients, buffers, metrics, attributes, logs and random states are as before.
    """
    randomness = random_state(module.device)
    no_collectives = _NoCollectives(module)
    # What a step gets at by another way than the copy, such as a callback, may be the module itself.
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        twin = isolated_copy(module)
        with no_collectives, torch.enable_grad():
            yield twin
    finally:
        no_collectives.restore_parameters()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        set_random_state(randomness, module.device)


class _LocalBatchNorm(_BatchNorm):
    """Instead of SyncBatchNorm, which would wait for ranks that don't replay."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def isolated_copy(module: LightningModule) -> LightningModule:
    """A copy that shares the memory of parameters and nothing else: gradients, buffers, metrics and all other
    attributes are its own. It logs nowhere."""
    shared = _shared_objects(module)
    for submodule in reversed(list(module.modules())):  # inner modules first
        shared[id(submodule)] = _copied(submodule, shared)
    twin = shared[id(module)]
    trainer = getattr(module, "_trainer", None)
    if trainer is not None:
        twin.trainer = trainer
    for submodule in twin.modules():
        if isinstance(submodule, nn.SyncBatchNorm):
            submodule.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    if getattr(twin, "_compiler_ctx", None):  # compiled functions belong to the original
        twin.__dict__.pop("forward", None)
        twin.__dict__.pop("training_step", None)
    twin.log = twin.log_dict = _log_nothing
    without_loggers = {"logger": DummyLogger(), "loggers": []}
    twin.__class__ = type(type(module).__name__, (type(module),), without_loggers)
    return twin


def _shared_objects(module: LightningModule) -> dict[int, Any]:
    """What a deep copy leaves uncopied, as a memo of `copy.deepcopy`: weights, and the run's own objects."""
    shared: dict[int, Any] = {}
    for parameter in module.parameters():
        # A new Parameter has no gradient, and none of the hooks by which DDP reduces.
        trains = parameter.requires_grad and type(parameter) is nn.Parameter
        shared[id(parameter)] = nn.Parameter(parameter.detach()) if trains else parameter
    trainer = getattr(module, "_trainer", None)
    if trainer is not None:
        of_run = [trainer, trainer.datamodule, trainer.strategy, trainer.train_dataloader]
        of_run += [*trainer.optimizers, *trainer.loggers, *trainer.callbacks]
        shared.update((id(thing), thing) for thing in of_run)
    return shared


def _copied(module: nn.Module, shared: dict[int, Any]) -> nn.Module:
    """A deep copy of one module; of attributes that can't be copied, the attributes themselves."""
    try:
        return copy.deepcopy(module, shared)
    except Exception:  # a user's attribute, such as an open file or a lock, may raise anything
        twin = shared[id(module)] = object.__new__(type(module))
        for name, value in module.__dict__.items():
            try:
                twin.__dict__[name] = copy.deepcopy(value, shared)
            except Exception:
                twin.__dict__[name] = value
        return twin


def _log_nothing(*_: Any, **__: Any) -> None:
    pass


class _NoCollectives(TorchDispatchMode):
    """Refuses to talk to other ranks, which don't listen, and notes parameters before they are written to."""

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = {_storage_id(parameter): parameter for parameter in module.parameters()}
        self._before: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in ("c10d", "_c10d_functional"):
            raise RuntimeError(f"it talks to other ranks ({func}), so one rank can't run it alone")
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(value)
        return func(*args, **(kwargs or {}))

    def _keep(self, value: Any) -> None:
        for _, tensor in named_tensors(value):
            key = _storage_id(tensor)
            if key in self._parameters and key not in self._before:
                self._before[key] = self._parameters[key].detach().clone()

    def restore_parameters(self) -> None:
        for key, value in self._before.items():
            self._parameters[key].data.copy_(value)


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
