"""Waiting for a metric to stall: what a stage that begins `on_plateau` has seen so far."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_vlm_callbacks.runs import LoggedMetric
from lightning_vlm_callbacks.staged_unfreezing.stages import Plateau
from lightning_vlm_callbacks.stop_rule import Rule, Standing, decide

__all__ = ["PlateauWatch", "copied_to_cpu"]


@dataclass
class _Progress:
    """What metrics have decided so far: all that a checkpoint needs."""

    begun: dict[int, int] = field(default_factory=dict)
    watched: int | None = None
    """The stage that waits. All below is about it."""
    best: float | None = None
    waits: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class PlateauWatch:
    """Judges the metric that the next stage waits for, and keeps the weights of its best value.

    Args:
        state: As from `state`, to continue from there; None starts empty.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self._progress = _Progress(**(state or {}))
        self._metric = LoggedMetric()

    @property
    def begun(self) -> dict[int, int]:
        """Stage -> its first step, of stages that began on a plateau."""
        return self._progress.begun

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(vars(self._progress))

    def new_fit(self) -> None:
        """Count a metric that was judged in another fit as a new one."""
        self._metric = LoggedMetric()

    def is_due(
        self, trainer: Trainer, root: nn.Module, stage: int, plateau: Plateau, trains: Collection[Parameter]
    ) -> bool:
        """Judge the metric after a validation.

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
        if self._progress.watched != stage:
            self._progress = _Progress(begun=self._progress.begun, watched=stage)
        metric = _logged(trainer, plateau.monitor)
        if not self._metric.is_new(metric):
            return False
        progress = self._progress
        rule = Rule(plateau.mode, plateau.min_delta, plateau.patience)
        value = trainer.strategy.broadcast(float(metric))  # so that all processes decide the same
        decision = decide(rule, Standing(progress.best, progress.waits), value)
        progress.best, progress.waits = decision.standing
        if decision.is_best and plateau.from_best:
            progress.weights = copied_to_cpu(root, trains)
        return decision.should_stop

    def end(self, root: nn.Module, stage: int) -> set[Parameter]:
        """When a stage begins: put back the best weights if it waited for a plateau.

        Returns:
            The parameters that were put back.
        """
        watched = self._progress.watched
        weights = self._progress.weights
        if watched is None or watched > stage:
            return set()
        self._progress = _Progress(begun=self._progress.begun)
        if watched < stage:  # a later stage has begun meanwhile
            return set()
        parameters = dict(root.named_parameters())
        buffers = dict(root.named_buffers())
        restored: set[Parameter] = set()
        with torch.no_grad():
            for name, weight in weights.items():
                if name in parameters:
                    parameters[name].copy_(weight)
                    restored.add(parameters[name])
                else:
                    buffers[name].copy_(weight)
        return restored


def copied_to_cpu(root: nn.Module, trains: Collection[Parameter]) -> dict[str, Tensor]:
    """The trained parameters, and the buffers (norm statistics) of modules that contain some."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in root.named_parameters():
        if parameter in trains:
            tensors[name] = parameter
    for name, module in root.named_modules():
        if any(parameter in trains for parameter in module.parameters()):
            tensors.update(module.named_buffers(name, recurse=False))
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _logged(trainer: Trainer, monitor: str) -> Tensor:
    metrics = trainer.callback_metrics
    if monitor not in metrics:
        there = ", ".join(sorted(metrics)) or "none"
        raise MisconfigurationException(f"on_plateau: found no logged metric {monitor!r}; there are: {there}")
    return metrics[monitor]
