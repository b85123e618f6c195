"""Waiting for a metric to stall: what a stage that begins `on_plateau` has seen so far."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_vlm_callbacks.staged_unfreezing.stages import Plateau, improved

__all__ = ["PlateauWatch"]


@dataclass
class _Progress:
    """What metrics have decided so far: all that a checkpoint needs."""

    begun: dict[int, int] = field(default_factory=dict)
    watched: int | None = None
    """The stage that is waited for; the rest is about it."""
    best: float | None = None
    waits: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class PlateauWatch:
    """Looks at the metric that the next stage waits for, and keeps the weights of its best value.

    Args:
        state: As from `state`, to continue from there; None starts empty.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self._progress = _Progress(**(state or {}))
        self._seen: Tensor | None = None
        """The metric that was looked at last. As it is held, no other tensor can be where it is in memory."""

    @property
    def begun(self) -> dict[int, int]:
        """Stage -> its first step, of stages that began on a plateau."""
        return self._progress.begun

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(vars(self._progress))

    def new_fit(self) -> None:
        """Count a metric that was looked at in another fit as a new one."""
        self._seen = None

    def is_due(
        self, trainer: Trainer, root: nn.Module, stage: int, plateau: Plateau, trains: dict[Parameter, float]
    ) -> bool:
        """Look at the metric after a validation.

        Args:
            trainer: Has the metric.
            root: Its weights are kept if they are the best so far and `from_best` needs them.
            stage: The stage that waits.
            plateau: What it waits for.
            trains: What the stage before it trains.

        Returns:
            Whether the stage begins now.

        Raises:
            MisconfigurationException: The metric isn't logged.
        """
        progress = self._progress
        if progress.watched != stage:
            progress.watched, progress.best, progress.waits, progress.weights = stage, None, 0, {}
        metric = trainer.callback_metrics.get(plateau.monitor)
        before, self._seen = self._seen, metric
        if before is not None and metric is not None and metric.data_ptr() == before.data_ptr():
            return False  # it wasn't logged again
        value = _of_first_process(trainer, plateau.monitor)
        if improved(value, progress.best, plateau):
            progress.best, progress.waits = value, 0
            if plateau.from_best:
                trained = _with_buffers(root, trains)
                progress.weights = {
                    name: tensor.detach().to("cpu", copy=True) for name, tensor in trained.items()
                }
            return False
        progress.waits += 1
        return progress.waits >= plateau.patience

    def end(self, root: nn.Module, stage: int) -> set[Parameter]:
        """When a stage begins: put back the best weights if it was waited for.

        Returns:
            The parameters that were put back.
        """
        watched, weights = self._progress.watched, self._progress.weights
        if watched is None or watched > stage:
            return set()
        self._progress = _Progress(begun=self._progress.begun)
        if watched < stage:  # a later stage has begun meanwhile
            return set()
        tensors = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        with torch.no_grad():
            for name, weight in weights.items():
                tensors[name].copy_(weight)
        return {parameter for name, parameter in root.named_parameters() if name in weights}


def _with_buffers(root: nn.Module, trains: dict[Parameter, float]) -> dict[str, Tensor]:
    """The trained parameters, and the buffers (norm statistics) of modules that contain some."""
    tensors: dict[str, Tensor] = {name: one for name, one in root.named_parameters() if one in trains}
    for place, module in root.named_modules():
        if any(parameter in trains for parameter in module.parameters()):
            tensors.update(module.named_buffers(place, recurse=False))
    return tensors


def _of_first_process(trainer: Trainer, monitor: str) -> float:
    """The metric of the first process, so that all make the same decision."""
    logged = trainer.callback_metrics
    if monitor not in logged:
        have = ", ".join(sorted(logged)) or "none"
        raise MisconfigurationException(f"on_plateau: found no logged metric {monitor!r}; there are: {have}")
    return trainer.strategy.broadcast(float(logged[monitor]))
