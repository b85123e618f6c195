"""What is kept of a run: counts in its checkpoints, and buffers and weights to return to."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

__all__ = ["Counts", "KeptBuffers", "Snapshots"]

MAX_SCALE_DROPS = 10
"""So many reductions of the loss scale within `SCALE_WINDOW` steps are reported."""
SCALE_WINDOW = 100
"""Optimizer steps over which reductions of the loss scale are counted."""
SMALL = 2**16
"""Buffers of so many values are copied for every step, larger ones only if they change."""


@dataclass
class Counts:
    """What a checkpoint holds.

    Args:
        skipped: Steps whose update was skipped because of NaN or infinity.
        in_a_row: Of these, the last ones without a good step between them.
        explained: Events that were reported.
        still_out: Updates that are still to be skipped after going back.
        drops: The last steps at which the loss scale shrank.
        drops_reported: Whether that was reported.
    """

    skipped: int = 0
    in_a_row: int = 0
    explained: int = 0
    still_out: int = 0
    drops: list[int] = field(default_factory=list)
    drops_reported: bool = False

    def add_drop(self, step: int, scale: float) -> str:
        """Count a reduction of the loss scale.

        Returns:
            What is to be reported of them, once; "" if they are few and the scale isn't as low as 1.
        """
        self.drops = [earlier for earlier in self.drops if earlier > step - SCALE_WINDOW] + [step]
        are_few = len(self.drops) < MAX_SCALE_DROPS and scale > 1
        if self.drops_reported or are_few:
            return ""
        self.drops_reported = True
        return f"shrank {len(self.drops)} times within {SCALE_WINDOW} steps"


@dataclass(eq=False)
class _Buffer:
    """A buffer of a module.

    Args:
        owner: The module that holds it.
        key: Its name there.
        changes: Whether it must be copied for every step.
        tensor: As it was at the last `keep`; and its `version` then, which torch counts up with each change.
        copied: The copy from then, if one is needed.
    """

    owner: nn.Module
    key: str
    changes: bool
    tensor: Tensor
    version: int = -1
    copied: Tensor | None = None


class KeptBuffers:
    """The buffers of a module, such as BatchNorm's statistics, as they were before a step.

    A forward on bad data would corrupt them, even if the update is skipped. Small ones are always copied, as
    BatchNorm changes its buffers without changing their version. A large one that the first step doesn't
    change is treated as a constant, such as quantised weights, and its copy is freed.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers: list[_Buffer] = []
        for name, tensor in module.named_buffers():
            owner, _, key = name.rpartition(".")
            is_small = tensor.numel() <= SMALL
            self._buffers.append(_Buffer(module.get_submodule(owner), key, is_small, tensor))

    def keep(self) -> None:
        """Copy them before a step. Nothing waits for the device."""
        tensors: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        copies: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in self._buffers:
            tensor = getattr(buffer.owner, buffer.key)
            is_new = buffer.version == -1
            is_replaced = tensor is not buffer.tensor
            if not is_new and (is_replaced or tensor._version != buffer.version):
                buffer.changes = True
            if is_new or buffer.changes:
                if buffer.copied is None or is_replaced:
                    buffer.copied = torch.empty_like(tensor)
                tensors[tensor.dtype].append(tensor.detach())
                copies[tensor.dtype].append(buffer.copied)
            else:
                buffer.copied = None
            buffer.tensor, buffer.version = tensor, tensor._version
        for dtype in tensors:
            torch._foreach_copy_(copies[dtype], tensors[dtype])

    def restore(self) -> None:
        """Give them back as they were at the last `keep`."""
        for buffer in self._buffers:
            if buffer.copied is not None:
                buffer.tensor.detach().copy_(buffer.copied)
                setattr(buffer.owner, buffer.key, buffer.tensor)
                buffer.version = buffer.tensor._version


class Snapshots:
    """The last few copies, on the CPU, of weights, buffers, optimizer and learning rate schedules.

    Args:
        size: How many.
        trainer: Whose first optimizer and schedules are copied.
        module: Whose buffers are copied.
    """

    def __init__(self, size: int, trainer: Trainer, module: LightningModule) -> None:
        self._size = size
        self._module = module
        self._optimizer = trainer.optimizers[0]
        self._schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._copies: list[dict[str, Any]] = []

    def take(self) -> None:
        """Copy what the optimizer trains, and its state. The host waits for the device."""
        weights = self._weights()
        if self._copies and len(self._copies[-1]["weights"]) != len(weights):
            self._copies.clear()  # more parameters train now, so older copies don't fit
        state = {
            "weights": weights,
            "buffers": dict(self._module.named_buffers()),
            "optimizer": self._optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self._schedulers],
        }
        self._copies.append(_copy_to_cpu(state))
        del self._copies[: -self._size]

    def go_back(self) -> None:
        """Go back to the oldest copy, which is kept, and drop the newer ones."""
        del self._copies[1:]
        state = _copy_to_cpu(self._copies[0])  # again, because an optimizer keeps the tensors it loads
        buffers = dict(self._module.named_buffers())
        with torch.no_grad():
            for weight, value in zip(self._weights(), state["weights"], strict=True):
                weight.copy_(value)
            for name, value in state["buffers"].items():
                buffers[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        for scheduler, value in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(value)

    def _weights(self) -> list[Tensor]:
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]


def _copy_to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return apply_to_collection(state, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
