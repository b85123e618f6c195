"""Saves and restores buffers and weights of a run, and copies a module for trials."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Aside", "KeptBuffers", "Snapshots", "tensors", "trial_copy"]


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested mappings, sequences and data classes, each with where it is.

    >>> [path for path, _ in tensors({"inputs": {"ids": torch.ones(1)}, "extra": [1, torch.ones(2)]})]
    ['inputs.ids', 'extra[1]']
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        below: Any = [(f"{path}.{key}".lstrip("."), one) for key, one in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        below = [(f"{path}.{key}".lstrip("."), one) for key, one in zip(value._fields, value, strict=True)]
    elif isinstance(value, list | tuple):
        below = [(f"{path}[{index}]", one) for index, one in enumerate(value)]
    elif is_dataclass(value):
        below = [(f"{path}.{one.name}".lstrip("."), getattr(value, one.name, None)) for one in fields(value)]
    else:
        return
    for place, one in below:
        yield from tensors(one, place)


# State that bad steps change

SMALL = 2**16
"""Buffers of so many values are copied for every step, larger ones only if they change."""


@dataclass
class _Kept:
    buffer: Tensor
    version: int
    value: Tensor | None
    changes: bool


class KeptBuffers:
    """The buffers of a module, such as BatchNorm's statistics, as they were before a step.

    A forward on bad data would corrupt them, even if the update is skipped. Small ones are always copied, as
    BatchNorm changes its buffers without changing their version. A large one that the first step doesn't
    change is treated as a constant, such as quantised weights, and its copy is freed.
    """

    def __init__(self, module: nn.Module) -> None:
        paths = [name.rpartition(".") for name, _ in module.named_buffers()]
        self._places = [(module.get_submodule(owner), key) for owner, _, key in paths]
        self._kept: dict[int, _Kept] = {}

    def keep(self) -> None:
        """Before a step. Nothing waits for the device."""
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for place, (owner, key) in enumerate(self._places):
            buffer, kept = getattr(owner, key), self._kept.get(place)
            changed = kept is not None and (kept.buffer is not buffer or kept.version != buffer._version)
            if kept is None or kept.buffer is not buffer or (changed and kept.value is None):
                value = buffer.detach().clone()
                self._kept[place] = _Kept(buffer, buffer._version, value, changed or buffer.numel() <= SMALL)
                continue
            kept.version, kept.changes = buffer._version, kept.changes or changed
            if not kept.changes:
                kept.value = None
            elif kept.value is not None:
                values, buffers = by_type[buffer.dtype]
                values.append(kept.value)
                buffers.append(buffer.detach())
        for values, buffers in by_type.values():
            torch._foreach_copy_(values, buffers)

    def restore(self) -> None:
        """As they were at the last `keep`."""
        for place, kept in self._kept.items():
            if kept.value is not None:
                owner, key = self._places[place]
                kept.buffer.detach().copy_(kept.value)
                setattr(owner, key, kept.buffer)
                kept.version = kept.buffer._version


class Snapshots:
    """The last few copies, on the CPU, of weights, buffers, optimizer and learning rate schedules.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring: list[dict[str, Any]] = []

    def take(self, step: int, module: nn.Module, optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
        """Copy what the optimizer trains, and its state. The host waits for the device."""
        if self._ring and len(self._ring[-1]["weights"]) != len(_weights(optimizer)):
            self._ring = []  # more parameters train now, so older copies don't fit
        held = {
            "step": step,
            "weights": _weights(optimizer),
            "buffers": dict(module.named_buffers()),
            "optimizer": optimizer.state_dict(),
            "schedulers": [one.state_dict() for one in schedulers],
        }
        self._ring = [*self._ring, _on_cpu(held)][-self._size :]

    def go_back(self, module: nn.Module, optimizer: Optimizer, schedulers: Sequence[Any]) -> int:
        """Go back to the oldest copy, which is kept, and drop the newer ones; return its step."""
        del self._ring[1:]
        held = _on_cpu(self._ring[0])  # a second copy, because an optimizer keeps the tensors it loads
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for weight, value in zip(_weights(optimizer), held["weights"], strict=True):
                weight.copy_(value)
            for name, value in held["buffers"].items():
                buffers[name].copy_(value)
        optimizer.load_state_dict(held["optimizer"])
        for one, state in zip(schedulers, held["schedulers"], strict=True):
            one.load_state_dict(state)
        return held["step"]


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [one for group in optimizer.param_groups for one in group["params"]]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_cpu, value))
    return copy.copy(value)


# The copy


class _LocalBatchNorm(_BatchNorm):
    """Instead of SyncBatchNorm, which would wait for ranks that don't replay."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def trial_copy(module: LightningModule) -> LightningModule:
    """A copy that shares the memory of parameters and nothing else: gradients, buffers, metrics and all other
    attributes are its own. It logs nowhere."""
    memo: dict[int, Any] = {}
    for one in module.parameters():
        # A new Parameter has no gradient, and none of the hooks by which DDP reduces.
        memo[id(one)] = nn.Parameter(one.detach()) if one.requires_grad and type(one) is nn.Parameter else one
    trainer = getattr(module, "_trainer", None)
    if trainer is not None:
        outside = [trainer, trainer.datamodule, trainer.strategy, *trainer.optimizers, *trainer.loggers]
        outside += [*trainer.callbacks, trainer.train_dataloader]
        memo.update({id(one): one for one in outside})
    for below in reversed(list(module.modules())):  # inner modules first
        memo[id(below)] = _copied(below, memo)
    trial = memo[id(module)]
    if trainer is not None:
        trial.trainer = trainer
    for below in trial.modules():
        if isinstance(below, nn.SyncBatchNorm):
            below.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    if getattr(trial, "_compiler_ctx", None):  # compiled functions belong to the original
        trial.__dict__.pop("forward", None), trial.__dict__.pop("training_step", None)
    trial.log = trial.log_dict = _nothing
    mute = {"logger": DummyLogger(), "loggers": []}
    trial.__class__ = type(type(module).__name__, (type(module),), mute)
    return trial


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of one module; of attributes that can't be copied, the attributes themselves."""
    try:
        return copy.deepcopy(module, memo)
    except Exception:
        twin = memo[id(module)] = object.__new__(type(module))
        for name, value in module.__dict__.items():
            try:
                twin.__dict__[name] = copy.deepcopy(value, memo)
            except Exception:
                twin.__dict__[name] = value
        return twin


def _nothing(*_: Any, **__: Any) -> None:
    pass


class Aside(TorchDispatchMode):
    """Refuses to talk to other ranks, which don't listen, and takes back what is written to parameters."""

    supports_higher_order_operators = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = {one.untyped_storage()._cdata: one for one in module.parameters()}
        self._before: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in ("c10d", "_c10d_functional"):
            raise RuntimeError(f"it talks to other ranks ({func}), so one rank can't run it alone")
        schema = getattr(func, "_schema", None)
        for argument, value in zip(schema.arguments if schema else (), args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for _, tensor in tensors(value):
                    self._keep(tensor)
        return func(*args, **(kwargs or {}))

    def _keep(self, tensor: Tensor) -> None:
        key = tensor.untyped_storage()._cdata
        if key in self._parameters and key not in self._before:
            self._before[key] = self._parameters[key].detach().clone()

    def take_back(self) -> None:
        for key, value in self._before.items():
            self._parameters[key].data.copy_(value)
