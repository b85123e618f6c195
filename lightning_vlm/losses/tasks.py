"""The weights of tasks in the loss of a `VLMModule`, and what is logged of tasks while it trains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from lightning_vlm_callbacks.task_weights import InitialLosses, TaskWeights
from torch import Tensor, nn

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.parts import MAX_WEIGHT
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

Weighting = Literal["inverse_initial_loss", "uncertainty"]
LARGEST_LOG_VARIANCE = 6.9
"""Bounds an uncertainty's weight to 0.001..1000."""


class FixedWeights(TaskWeights):
    """Weights that stay, unless a callback such as GradNorm changes them. The others derive from it."""

    method = "fixed"

    def regularizer(self, sums: Tensor, counts: Tensor) -> Tensor | None:
        """A zero to add to a micro-batch's loss, through which backward reaches what the weights learn by.

        Args:
            sums: Tensor of shape [tasks], detached: Σ wℓ of each task, before its weight.
            counts: Tensor of shape [tasks]: Σ w.
        """
        return None

    def end_step(self, sums: Tensor, counts: Tensor) -> None:
        """Change the weights after an optimizer step.

        Args:
            sums: Tensor of shape [tasks]: Σ wℓ of each task over the whole step, on all ranks.
            counts: Tensor of shape [tasks]: Σ w.
        """

    def progress(self) -> dict[str, Any]:
        """What the weights depend on, for a checkpoint."""
        return {}

    def resume(self, progress: Mapping[str, Any]) -> None:
        """From a checkpoint, `progress`."""

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"how": self.method, "names": list(self.names), **self.progress()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint. Fixed weights may be others than they were.

        Raises:
            UserError: The checkpoint's weights were found in another way, or for other tasks.
        """
        was = state.get("how", FixedWeights.method)
        if was != self.method:
            raise UserError(
                f"model.task_weights: found {self.method}, but the checkpoint was trained with {was}; "
                "continue with the same, or start a new run"
            )
        names = state.get("names", [])
        if self.method in LEARNED and names != list(self.names):
            raise UserError(
                f"model.task_weights {self.method}: found tasks {', '.join(self.names)}, but the checkpoint "
                f"has {', '.join(names)}; continue with the same data, or start a new run"
            )
        self.resume(state)


class InverseInitialLoss(FixedWeights):
    """wᵢ ∝ 1/Lᵢ(0), with the number of tasks as their sum, so that they don't change the learning rate.

    Lᵢ(0) is the mean over the first 10 steps that have the task; meanwhile the weight follows it. A task that
    has not been seen yet, or whose loss is 0, weighs 1.

    >>> tasks = InverseInitialLoss(["caption", "vqa", "ocr"])
    >>> tasks.end_step(torch.tensor([2.5, 3.2, 1.8]), torch.ones(3))
    >>> tasks.weights
    tensor([0.9463, 0.7393, 1.3143])
    """

    method = "inverse_initial_loss"
    steps = 10

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.set_by = "task_weights: inverse_initial_loss"
        self._initial: InitialLosses | None = None
        self._resumed: Mapping[str, Any] | None = None

    def end_step(self, sums: Tensor, counts: Tensor) -> None:
        if self._initial is None:  # the device is known only now
            self._initial = InitialLosses(len(self.names), self.steps, self.weights.device)
            if self._resumed is not None:
                self._initial.load_state_dict(self._resumed)
        self._initial.add(sums / counts, counts > 0)
        known = self._initial.known
        inverse = torch.where(known, 1 / self._initial.mean(), 0)
        share = inverse / inverse.sum().clamp(min=torch.finfo(inverse.dtype).tiny)
        self.weights.copy_(torch.where(known, share * known.sum(), 1))

    def progress(self) -> dict[str, Any]:
        initial = self._initial.state_dict() if self._initial else self._resumed
        return {"weights": self.weights.clone(), "initial": initial}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.weights.copy_(progress["weights"])
        self._resumed = progress["initial"]


class Uncertainty(FixedWeights):
    """Learned uncertainty of each task: Σᵢ e^(-sᵢ) Lᵢ + sᵢ/2, where sᵢ = log σᵢ² is learned.

    The form for classification of Kendall, Gal and Cipolla (2018, https://arxiv.org/abs/1705.07115).

    At the optimum e^(-sᵢ) = 1/(2Lᵢ): each task's share is its loss's logarithm. It is taken over the step as
    all else is, (Σᵢ e^(-sᵢ) Sᵢ + sᵢCᵢ/2) / ΣCᵢ of sums of losses S and of tokens' weights C, so that it
    doesn't depend on how the step is split. s begins at 0 and is held within ±6.9: as a loss goes to 0 its
    weight would grow without end. s has its own learning rate (`learning_rates: {tasks: 0.01}` by default),
    no decay, and no part in the clipped norm. Learning log σ² rather than σ keeps σ² above 0.

    >>> tasks = Uncertainty(["caption", "vqa"])
    >>> tasks.regularizer(torch.tensor([4.0, 0.1]), torch.ones(2)).backward()
    >>> tasks.log_variances.grad
    tensor([-3.5000,  0.4000])
    """

    method = "uncertainty"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.set_by = "task_weights: uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(names)))
        """Parameter of shape [tasks]: s."""
        self._warned = False

    def regularizer(self, sums: Tensor, counts: Tensor) -> Tensor | None:
        s = self.log_variances
        if s.requires_grad:
            slopes = counts / 2 - torch.exp(-s.detach()) * sums
            return (slopes * (s - s.detach())).sum()
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                "task_weights: uncertainty: tasks.log_variances is frozen, so weights stay as they are; "
                "name 'tasks' among what trains"
            )
        return None

    @torch.no_grad()
    def end_step(self, sums: Tensor, counts: Tensor) -> None:
        self.log_variances.clamp_(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        self.weights.copy_(torch.exp(-self.log_variances))

    def progress(self) -> dict[str, Any]:
        return {"log_variances": self.log_variances.detach().clone()}

    @torch.no_grad()
    def resume(self, progress: Mapping[str, Any]) -> None:
        self.log_variances.copy_(progress["log_variances"])
        self.weights.copy_(torch.exp(-self.log_variances))


LEARNED = {kind.method: kind for kind in (InverseInitialLoss, Uncertainty)}


def check_weighting(given: Mapping[str, float] | str | None) -> None:
    """Check `task_weights` of a module, before the tasks are known.

    Raises:
        UserError: Another word than those of `Weighting`, or a weight that isn't a number > 0 whose products
            with other weights float32 can hold.
    """
    if isinstance(given, str) and given not in LEARNED:
        raise UserError(
            f"task_weights: found {given!r}; expected {' or '.join(LEARNED)}, or the weight of each task, "
            "such as {ocr: 2.0}"
        )
    weights = given if isinstance(given, Mapping) else {}
    smallest = 1 / MAX_WEIGHT
    for task, weight in weights.items():
        is_number = isinstance(weight, int | float)
        if not is_number or not smallest <= weight <= MAX_WEIGHT:
            raise UserError(
                f"task_weights.{task}: found {weight!r}; expected a finite number > 0, from "
                f"{smallest:g} to {MAX_WEIGHT:,.0f}"
            )


def make_task_weights(given: Mapping[str, float] | str | None, names: Sequence[str]) -> FixedWeights:
    """The table of weights for the tasks that the training data has.

    Args:
        given: Task -> weight, where tasks that aren't named weigh 1; or how weights are found; None is 1 for
            each.
        names: The tasks.

    Raises:
        UserError: A task is given a weight that the data doesn't have.

    >>> make_task_weights({"ocr": 2.0}, ["vqa", "ocr"]).weights
    tensor([1., 2.])
    """
    if isinstance(given, str):
        return LEARNED[given](names)
    given = given or {}
    for task in given:
        try:
            task_index(task, names)
        except UserError as error:
            raise UserError(f"task_weights: {error}") from None
    return FixedWeights(names, [given.get(name, 1.0) for name in names])


def task_weights_for(trainer: Trainer, given: Mapping[str, float] | str | None) -> FixedWeights:
    """The table of weights for what a Trainer is about to train on. Without a `VLMDataModule` the tasks are
    those that are given a weight, and `OTHER` for all that come beside them.

    Raises:
        UserError: As `make_task_weights`; or weights are to be found and the tasks aren't known.
    """
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, VLMDataModule):
        return make_task_weights(given, data.task_names)
    if isinstance(given, str):
        raise UserError(
            f"task_weights: found {given} without a VLMDataModule, which names the tasks; train "
            "with one, or give each task its weight"
        )
    return make_task_weights(given, [*(given or {}), OTHER])


def task_index(task: str, names: Sequence[str]) -> int:
    """The place of a task among those of the training data.

    Raises:
        UserError: It isn't there, nor is `OTHER`.
    """
    if task in names:
        return names.index(task)
    if OTHER in names:
        return names.index(OTHER)
    near = did_you_mean(task, names, quoted=True)
    raise UserError(f"task {task!r}: the training data has no such task, only {', '.join(names)}{near}")


class TaskLog:
    """Logs the loss of each of several tasks since it was last logged, and its weight. No step waits for the
    device: what is to be logged is read a step later."""

    def __init__(self, tasks: TaskWeights) -> None:
        self._tasks = tasks
        self._since = torch.zeros(2, len(tasks.names))
        self._pending: tuple[int, HostCopy] | None = None

    def add(self, sums: Tensor, counts: Tensor, trainer: Trainer) -> None:
        """Add an optimizer step, before it changes the weights."""
        self.write(trainer)
        if len(self._tasks.names) == 1:  # whose loss is train/loss
            return
        both = torch.stack((sums, counts))
        # A step of NaN is in train/loss; it must not be in the mean of those around it too.
        self._since = self._since.to(sums.device) + torch.where(both.isfinite().all(0), both, 0)
        if logs_at(trainer, trainer.global_step + 1):
            sums_since, counts_since = self._since
            table = torch.stack((sums_since / counts_since, self._tasks.weights))
            self._pending = (trainer.global_step, HostCopy(table))
            self._since = torch.zeros_like(self._since)

    def write(self, trainer: Trainer) -> None:
        """Write what waits to be logged."""
        if self._pending is None:
            return
        step, table = self._pending
        self._pending = None
        losses, weights = table.read().tolist()
        values = {}
        for name, loss, weight in zip(self._tasks.names, losses, weights, strict=True):
            values[f"train/task_weight/{name}"] = weight
            if not math.isnan(loss):  # it is NaN where the task wasn't there
                values[f"train/loss/{name}"] = loss
        log_metrics(trainer, values, step)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"names": list(self._tasks.names), "since": self._since.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; of other tasks nothing is taken over."""
        if state.get("names") == list(self._tasks.names):
            self._since = state["since"].clone()
