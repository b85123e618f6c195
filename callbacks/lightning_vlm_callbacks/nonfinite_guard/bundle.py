"""A micro-batch that gave NaN or infinity, in a file that runs it again anywhere."""

import sys
from collections import UserDict
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_vlm_callbacks.host_data import HostData
from lightning_vlm_callbacks.nonfinite_guard.batches import items_of, named_tensors
from lightning_vlm_callbacks.nonfinite_guard.diagnosis import Diagnosis
from lightning_vlm_callbacks.nonfinite_guard.replay import replay

__all__ = ["NonFiniteBundle", "save"]

_CLASS = "__class__"
"""The key that names the class of a container in a file."""


@dataclass
class NonFiniteBundle:
    """A micro-batch that gave NaN or infinity, with the data needed to run it again.

    Args:
        batch: As training_step got it, on the CPU. Things that are neither containers, tensors, numbers,
            strings nor `HostData` are kept as text.
        batch_idx: Its number in the epoch.
        step: `trainer.global_step` when it was met.
        epoch: Counted from 0.
        rank: Where it was met.
        precision: As the Trainer names it.
        factor: What the loss is multiplied by before the backward: loss scale / accumulated batches.
        random: States of all generators right before training_step.
        training: Names of the modules in train mode.
        trainable: Names of the parameters that trained.
        weights: Trainable parameters and all buffers, if they fit into the size limit.
    """

    batch: Any
    batch_idx: int
    step: int
    epoch: int
    rank: int
    precision: str
    factor: float
    random: dict[str, Any]
    training: list[str]
    trainable: list[str]
    weights: dict[str, Tensor] | None

    @classmethod
    def load(cls, file: str | Path) -> "NonFiniteBundle":
        """Read a `bundle.pt`. Runs no code out of the file: it holds tensors, numbers and strings.

        Raises:
            MisconfigurationException: The batch is of a class whose module isn't imported.
        """
        content = torch.load(file, map_location="cpu", weights_only=True)
        content["batch"] = _unpack(content["batch"])
        return cls(**content)

    def replay(self, module: LightningModule) -> Diagnosis:
        """Run it again, and say where it goes wrong.

        Args:
            module: Made as for training, on the device to use. It takes over the weights, train modes and
                requires_grad of the bundle; what it hasn't got, as it is made when a fit begins, is skipped
                with a warning.
        """
        module.configure_model()
        self._prepare(module)
        plugin = self._plugin(module.device.type)
        plugin.convert_module(module)
        batch = module.transfer_batch_to_device(self.batch, module.device, 0)
        context = plugin.train_step_context
        return replay(module, batch, self.batch_idx, self.random, factor=self.factor, context=context)[0]

    def _prepare(self, module: LightningModule) -> None:
        own: dict[str, Tensor] = {}
        own.update(module.named_parameters())
        own.update(module.named_buffers())
        missing = []
        for name, value in (self.weights or {}).items():
            if name in own:
                own[name].data.copy_(value)
            else:
                missing.append(name)
        if missing:
            rank_zero_warn(f"the module has no {', '.join(missing)}, which the bundle has: skipped")
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, submodule in module.named_modules():
            submodule.training = name in self.training

    def _plugin(self, device: str) -> Precision:
        precision: Any = self.precision
        if precision in ("16-mixed", "bf16-mixed"):
            return MixedPrecision(precision, device)
        if precision in ("16-true", "bf16-true"):
            return HalfPrecision(precision)
        return DoublePrecision() if precision == "64-true" else Precision()


def save(file: Path, bundle: NonFiniteBundle, max_bytes: float) -> str:
    """Write a bundle, if it is small enough.

    Args:
        file: Its folder must exist.
        bundle: Its batch and weights may lie on any device.
        max_bytes: What doesn't fit is omitted, first the weights, then all.
    Returns:
        What was omitted, as a sentence; else "".
    """
    size = _bytes(bundle.batch)
    if size > max_bytes:
        return f"The batch has {size / 2**20:,.0f} MiB, over max_bundle_mib: there is no bundle."
    omitted = ""
    weights = bundle.weights
    if size + _bytes(weights) > max_bytes:
        weights = None
        omitted = "The weights were too large for the bundle: load a checkpoint from just before this step."
    content = {field.name: getattr(bundle, field.name) for field in fields(bundle)}
    content["batch"] = _pack(bundle.batch)
    content["weights"] = _pack(weights)
    torch.save(content, file)
    return omitted


def _bytes(value: Any) -> int:
    return sum(tensor.nbytes for _, tensor in named_tensors(value))


def _pack(value: Any) -> Any:
    """Only what torch.load takes with weights_only. Classes become dictionaries that name them."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) in (list, tuple):
        return type(value)(map(_pack, value))
    is_named_tuple = isinstance(value, tuple) and hasattr(value, "_fields")
    if not (is_named_tuple or isinstance(value, dict | UserDict | HostData) or is_dataclass(value)):
        return repr(value)
    packed = {}
    if type(value) is not dict:
        packed[_CLASS] = f"{type(value).__module__}:{type(value).__qualname__}"
    for key, item in vars(value).items() if isinstance(value, HostData) else items_of(value):
        packed[key] = _pack(item)
    return packed


def _unpack(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_unpack, value))
    if not isinstance(value, dict):
        return value
    items = {key: _unpack(item) for key, item in value.items()}
    path = items.pop(_CLASS, None)
    return items if path is None else _rebuild(path, items)


def _rebuild(path: str, items: dict[str, Any]) -> Any:
    """An object of a container class that is imported, made without its constructor's code."""
    module, _, name = path.partition(":")
    kind: Any = sys.modules.get(module)  # a file must not cause an import
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type):
        raise MisconfigurationException(f"the batch is a {name} of {module}: import that first")
    if issubclass(kind, tuple) and hasattr(kind, "_make"):
        return kind._make(items.values())
    if issubclass(kind, dict | UserDict):
        return kind(items)
    if is_dataclass(kind) or issubclass(kind, HostData):
        rebuilt = object.__new__(kind)
        rebuilt.__dict__.update(items)
        return rebuilt
    raise MisconfigurationException(f"the batch is a {name} of {module}, which no longer holds data")
