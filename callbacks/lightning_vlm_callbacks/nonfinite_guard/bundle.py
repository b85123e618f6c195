"""A batch that gave NaN or infinity: what is wrong with its data, and a file to run it again from."""

import copy
import sys
from collections import UserDict
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_vlm_callbacks.nonfinite_guard.replay import Diagnosis, replay
from lightning_vlm_callbacks.nonfinite_guard.state import tensors

__all__ = ["NonFiniteBundle", "check_batch", "keep_structure", "save"]

IGNORED = -100
"""The label that no loss counts."""
_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64}


# Batches


def keep_structure(batch: Any) -> Any:
    """The same tensors in new containers, because a training_step may remove items from its batch.

    >>> batch = {"labels": [1, 2]}
    >>> kept = keep_structure(batch)
    >>> batch.pop("labels").clear(), kept
    (None, {'labels': [1, 2]})
    """
    if isinstance(batch, tuple):
        items = map(keep_structure, batch)
        return batch._make(items) if hasattr(batch, "_make") else tuple(items)
    if isinstance(batch, list):
        return [keep_structure(one) for one in batch]
    if isinstance(batch, MutableMapping):
        kept = copy.copy(batch)
        for key, one in batch.items():
            kept[key] = keep_structure(one)
        return kept
    return batch


def check_batch(batch: Any, module: nn.Module) -> list[str]:
    """What is wrong with a batch's data, as sentences.

    Looks at any float for NaN and infinity; at pictures (floats or bytes of at least three dimensions) that
    are one colour; at `input_ids` for ids that no embedding of the module has; at `labels` and `targets` for
    values that can't be; and for batches without anything supervised (all labels -100, all `weights` 0).

    >>> batch = {"x": torch.tensor([1.0, float("nan")]), "labels": torch.tensor([-100, -100])}
    >>> check_batch(batch, nn.Linear(1, 1))
    ['x: 1 of 2 values are NaN or infinite', 'labels: nothing is supervised (all are -100)']
    """
    found = list(tensors(batch))
    sizes = [one.num_embeddings for one in module.modules() if isinstance(one, nn.Embedding)]
    has_ids = any(_last(path) == "input_ids" for path, _ in found)
    vocabulary = max(sizes) if sizes and has_ids else None
    return [
        f"{path or 'the batch'}: {one}" for path, value in found for one in _check(path, value, vocabulary)
    ]


def _check(path: str, value: Tensor, vocabulary: int | None) -> list[str]:
    name, wrong = _last(path), []
    if value.is_floating_point() and value.numel():
        bad = int((~value.isfinite()).sum())
        if bad:
            wrong.append(f"{bad} of {value.numel()} values are NaN or infinite")
    if value.ndim >= 3 and value.numel() and (value.is_floating_point() or value.dtype == torch.uint8):
        flat = value.flatten(max(1, value.ndim - 3)) if value.ndim > 3 else value.flatten(1)
        flat = flat.flatten(0, -2)
        (plain,) = (flat.amin(1) == flat.amax(1)).nonzero(as_tuple=True)
        if len(plain):
            levels = sorted({f"{one:.4g}" for one in flat[plain, 0].tolist()})
            filled = "; it may be padding" if value.ndim > 4 else ""
            which = f"pictures {plain.tolist()[:8]} of {len(flat)}"
            wrong.append(f"{which} are one colour ({', '.join(levels[:4])}){filled}")
    if name in ("weights", "loss_weights") and not (value > 0).any():
        wrong.append("nothing is supervised (no weight is above 0)")
    if value.is_floating_point() or value.dtype == torch.bool or value.is_complex():
        return wrong
    if name == "input_ids" and value.numel() and vocabulary is not None:
        wrong += _outside(value, vocabulary, "embedding", "ids")
    if name in ("labels", "label", "targets", "target"):
        counted = value[value != IGNORED]
        if not counted.numel():
            wrong.append(f"nothing is supervised (all are {IGNORED})")
        else:
            wrong += _outside(counted, vocabulary, "vocabulary", "labels")
    return wrong


def _outside(values: Tensor, size: int | None, what: str, kind: str) -> list[str]:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and (size is None or high < size):
        return []
    end = f"to {size - 1}, as the {what} has {size} entries" if size is not None else "or more"
    return [f"{kind} from {low} to {high}; expected 0 {end}"]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


# Bundles


@dataclass
class NonFiniteBundle:
    """A micro-batch that gave NaN or infinity, with the data needed to run it again.

    Args:
        batch: As training_step got it, on the CPU. Things that are neither containers, tensors, numbers nor
            strings are kept as text.
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
        held = torch.load(file, map_location="cpu", weights_only=True)
        return cls(**{**held, "batch": _unpack(held["batch"])})

    def replay(self, module: LightningModule) -> Diagnosis:
        """Run it again, and say where it goes wrong.

        Args:
            module: Made as for training, on the device to use. It takes over the weights, train modes and
                requires_grad of the bundle; what it hasn't got, as it is made when a fit begins, is left out
                with a warning.
        """
        module.configure_model()
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        weights = self.weights or {}
        missing = [name for name in weights if name not in own]
        if missing:
            rank_zero_warn(f"the module has no {', '.join(missing)}, which the bundle has: left out")
        for name in weights.keys() & own.keys():
            own[name].data.copy_(weights[name])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, one in module.named_modules():
            one.training = name in self.training
        bits, _, kind = self.precision.partition("-")
        context: Callable[[], AbstractContextManager] = nullcontext
        if kind == "mixed":
            context = partial(torch.autocast, module.device.type, dtype=_DTYPES[bits], cache_enabled=False)
        elif bits in _DTYPES:
            module.to(_DTYPES[bits])
        batch = module.transfer_batch_to_device(self.batch, module.device, 0)
        return replay(module, batch, self.batch_idx, self.random, factor=self.factor, context=context)[0]


def save(file: Path, bundle: NonFiniteBundle, limit: float) -> str:
    """Write a bundle, if it is small enough.

    Args:
        file: Its folder must exist.
        bundle: Its batch and weights may lie on any device.
        limit: In bytes: what doesn't fit is left out, first the weights, then all.
    Returns:
        What was left out, as a sentence; else "".
    """
    size = _bytes(bundle.batch)
    if size > limit:
        return f"The batch has {size / 2**20:,.0f} MiB, over max_bundle_mib: there is no bundle."
    left_out = ""
    if bundle.weights is not None and size + _bytes(bundle.weights) > limit:
        bundle.weights = None
        left_out = "The weights were too large for the bundle: load a checkpoint from just before this step."
    held = {one.name: getattr(bundle, one.name) for one in fields(bundle)}
    weights = None if bundle.weights is None else {name: _cpu(one) for name, one in bundle.weights.items()}
    torch.save({**held, "batch": _pack(bundle.batch), "weights": weights}, file)
    return left_out


def _bytes(value: Any) -> int:
    return sum(one.numel() * one.element_size() for _, one in tensors(value))


def _cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _pack(value: Any) -> Any:
    """Only what torch.load takes with weights_only. Classes become dictionaries that name them."""
    if isinstance(value, Tensor):
        return _cpu(value)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) in (list, tuple):
        return type(value)(map(_pack, value))
    named = {"__class__": f"{type(value).__module__}:{type(value).__qualname__}"}
    if type(value) is dict:
        return {key: _pack(one) for key, one in value.items()}
    if isinstance(value, dict | UserDict):
        return named | {key: _pack(one) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return named | dict(zip(value._fields, map(_pack, value), strict=True))
    if is_dataclass(value):
        return named | {one.name: _pack(getattr(value, one.name, None)) for one in fields(value)}
    return repr(value)


def _unpack(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_unpack, value))
    if not isinstance(value, dict):
        return value
    held = {key: _unpack(one) for key, one in value.items() if key != "__class__"}
    if "__class__" not in value:
        return held
    module, _, name = value["__class__"].partition(":")
    kind: Any = sys.modules.get(module)  # a file must not cause an import
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type):
        raise MisconfigurationException(f"the batch is a {name} of {module}: import that first")
    if issubclass(kind, tuple) and hasattr(kind, "_make"):
        return kind._make(held.values())
    if issubclass(kind, dict | UserDict):
        return kind(held)
    if is_dataclass(kind):
        made = object.__new__(kind)
        made.__dict__.update(held)
        return made
    raise MisconfigurationException(f"the batch is a {name} of {module}, which no longer holds data")
