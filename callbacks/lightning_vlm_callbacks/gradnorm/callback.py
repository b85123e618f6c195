"""Weights of tasks that balance themselves by the norms of the tasks' gradients."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.gradnorm.layer import refuse_batch_norms, shared_layer
from lightning_vlm_callbacks.gradnorm.solver import closed_form, paper
from lightning_vlm_callbacks.gradnorm.statistics import TaskStatistics, logged_values
from lightning_vlm_callbacks.gradnorm.task_gradients import StepGradients, TaskGradients
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_lightning,
    require_single_closure,
    several_closures,
)
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.runs import loss_scaler
from lightning_vlm_callbacks.selectors import select_modules
from lightning_vlm_callbacks.task_weights import TaskWeights, task_weights_of

__all__ = ["GradNorm"]

NEEDS_WHOLE = "takes the gradients of tasks at one layer, whose weights FSDP2 keeps in pieces"

SOLVERS = {"closed_form": closed_form, "paper": paper}


class GradNorm(Callback):
    """GradNorm (Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257): tasks train at similar rates.

    The weights of tasks are moved towards those at which the norm of every task's weighted gradient, on one
    layer that all share, is in proportion to r^alpha. r is how far behind a task is: L(t)/L(0) over its mean.
    L(0) is the mean of a task's first 10 measured losses. Weights are positive, and their sum is the number
    of tasks, so that they don't change the learning rate. New weights count from the next step on.

    Works with any module that has a `TaskWeights`: its docstring shows the two lines that are needed. If each
    sample belongs to one task (`rows`), all gradients come from the ordinary backward pass, which costs as
    much as that layer's weight gradient; the layer may be frozen or quantised. Samples may share a row (then
    it can't be a layer of a vision tower). It is exact unless samples change one another: batch norms that
    train and tied weights are refused; experts with a shared capacity and losses across the batch would
    silently give wrong norms. If tasks share inputs (`total`), there is a backward pass for each task, so set
    `every_n_steps`.

    A task that isn't in a step keeps its last norm and loss; one that has never been seen, whose gradient is
    exactly zero, or isn't finite, keeps its weight.

    Args:
        alpha: How strongly tasks that are behind are favoured. 0 makes all norms equal; the paper uses 1.5
            for tasks that differ much and 0.12 for similar tasks.
        layer: Selector of one linear layer, shared by all tasks and late. None: the last LoRA B inside a list
            of layers, else the last linear layer inside one. (LoRA's A has no gradient at its start.)
        every_n_steps: How many optimizer steps lie between changes of the weights.
        solver: `closed_form` moves the weights a share of the way to where they would converge; `paper` makes
            a step of the paper's gradient descent. Both work on the logarithms of the weights.
        rate: That share, or the learning rate.

    Raises:
        MisconfigurationException: An argument is out of range. Or, when the fit begins: the module has no
            TaskWeights, or changes them itself; no layer, or several; one device or DDP isn't the strategy.
        SelectorError: `layer` finds nothing.
    """

    def __init__(
        self,
        alpha: float = 1.5,
        layer: str | None = None,
        every_n_steps: int = 1,
        solver: Literal["closed_form", "paper"] = "closed_form",
        rate: float = 0.1,
    ) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise MisconfigurationException(f"solver: found {solver!r}; expected closed_form or paper")
        if not alpha >= 0:
            raise MisconfigurationException(f"alpha: found {alpha}; expected a number >= 0")
        if not 0 < rate <= 1:
            raise MisconfigurationException(f"rate: found {rate}; expected a number in (0, 1]")
        if every_n_steps < 1:
            raise MisconfigurationException(f"every_n_steps: found {every_n_steps}; expected 1 or more")
        self.alpha = alpha
        self.layer = layer
        self.every_n_steps = every_n_steps
        self.solver = SOLVERS[solver]
        self.rate = rate
        self._loaded: dict[str, Any] = {}
        self._gradients: TaskGradients | None = None

    # Hooks

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_lightning("GradNorm", trainer)
        if stage == "fit":
            require_full_gradients("GradNorm", trainer, pl_module, NEEDS_WHOLE)

    def check_selectors(self, root: nn.Module, may_train: Collection[nn.Parameter] = ()) -> None:
        """Raise a SelectorError if `layer` finds nothing in a model; `may_train` doesn't matter here."""
        if self.layer is not None:
            select_modules(root, self.layer)

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        require_initialized("GradNorm", pl_module)
        require_single_closure("GradNorm", trainer.optimizers)
        tasks = _task_weights(pl_module)
        name, layer = shared_layer(pl_module, self.layer, self._loaded.get("layer"))
        self._begin(tasks, TaskGradients(layer, name, tasks))
        self._loggers = trainer.loggers
        self._every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if len(tasks.names) == 1:
            rank_zero_warn(f"GradNorm: found one task, {tasks.names[0]}, so there is nothing to balance")
        once = "weights change only once, after the first step"
        warn_if_beyond(trainer, "GradNorm: every_n_steps", self.every_n_steps, once)
        rank_zero_info(f"GradNorm: tasks {', '.join(tasks.names)}; layer {name}")

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        assert self._gradients is not None
        self._stepped = False
        if not self._gradients.open and trainer.global_step % self.every_n_steps == 0:
            self._gradients.begin(_loss_scale(trainer, pl_module.device), trainer.accumulate_grad_batches)

    @override
    def on_before_backward(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor
    ) -> None:
        self._has_loss = True

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        if self._stepped:  # the weights for the next step are already set
            raise several_closures("GradNorm", optimizer)
        self._stepped = True
        self._log_pending()
        if self._gradients is not None and self._gradients.open:
            self._end_step(trainer, pl_module, self._gradients)
        self._has_loss = False

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._log_pending()

    @override
    def on_exception(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException
    ) -> None:
        if self._gradients is not None:  # no teardown follows an exception in a step
            self._gradients.stop()

    @override
    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if self._gradients is not None:
            self._gradients.stop()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._gradients is None:
            return self._loaded
        self._log_pending()
        return {
            "tasks": list(self._tasks.names),
            "layer": self._gradients.name,
            "weights": self._tasks.weights.clone(),
            **self._statistics.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    # A run

    def _begin(self, tasks: TaskWeights, gradients: TaskGradients) -> None:
        self._tasks = tasks
        self._gradients = gradients
        self._statistics = TaskStatistics(len(tasks.names), tasks.weights.device)
        self._pending: tuple[int, HostCopy, HostCopy] | None = None
        self._stepped = False
        self._has_loss = False
        tasks.weights.mul_(len(tasks.names) / tasks.weights.sum())
        if self._loaded:
            self._restore(self._loaded)
            self._loaded = {}

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["tasks"] != list(self._tasks.names):
            raise MisconfigurationException(
                f"GradNorm: found tasks {', '.join(self._tasks.names)}, but the checkpoint has "
                f"{', '.join(state['tasks'])}; continue with the same data, or start a new run"
            )
        self._tasks.weights.copy_(state["weights"])
        self._statistics.load_state_dict(state)

    # A step

    def _end_step(self, trainer: "pl.Trainer", root: nn.Module, gradients: TaskGradients) -> None:
        if not self._has_loss:  # `training_step` returned None, so Lightning skipped the backward pass
            gradients.stop()
            return
        self._refuse_wrong(root, gradients)
        step = gradients.finish(trainer.world_size)
        weights = self._tasks.weights.clone()
        self._move_weights(step)
        done = trainer.global_step + 1
        if self._every and done // self._every != (done - self.every_n_steps) // self._every:
            table = HostCopy(self._statistics.table(weights))
            self._pending = (trainer.global_step, table, HostCopy(step.cosines()))

    def _move_weights(self, step: StepGradients) -> None:
        """Set the weights for the next step. The host doesn't wait for the device."""
        weights = self._tasks.weights
        losses = (step.sums / step.counts).to(weights.dtype)  # NaN where a task wasn't in the step
        # Norms are measured without the task's weight, so that those of different steps are comparable.
        norms = step.norms.to(weights.dtype) * (self._tasks.scale / weights)
        statistics = self._statistics
        statistics.add(losses, norms)
        known = statistics.known & (statistics.norms > 0)
        rates = statistics.rates(known)
        weights.copy_(self.solver(weights, statistics.norms, rates, known, self.alpha, self.rate))

    def _refuse_wrong(self, root: nn.Module, gradients: TaskGradients) -> None:
        """Check what is known only after a backward pass: whether the module uses `rows` or `total`."""
        rows = self._tasks.rows
        if rows is not None:
            refuse_batch_norms(root)
        if not gradients.calls and (rows is None or bool((rows >= 0).any())):
            raise MisconfigurationException(
                f"GradNorm: layer {gradients.name} had no part in the loss, or the module called neither "
                "TaskWeights.total nor set TaskWeights.rows; choose a layer that all tasks go through"
            )

    # Logging

    def _log_pending(self) -> None:
        """Log what was measured a step ago. The host waits here, at steps that log."""
        if self._pending is None:
            return
        step, table, cosines = self._pending
        self._pending = None
        values = logged_values(self._tasks.names, table.read().tolist(), cosines.read().tolist())
        for logger in self._loggers:
            logger.log_metrics(values, step=step)


def _task_weights(module: nn.Module) -> TaskWeights:
    try:
        tasks = task_weights_of(module)
    except ValueError as error:
        raise MisconfigurationException(f"GradNorm: {error}") from None
    if tasks.set_by is not None:
        raise MisconfigurationException(
            f"GradNorm: found weights of tasks that {tasks.set_by} changes; expected one of the two"
        )
    return tasks


def _loss_scale(trainer: "pl.Trainer", device: torch.device) -> Tensor | None:
    """What a GradScaler multiplies the loss by, on the device, so that the host doesn't wait."""
    scaler = loss_scaler(trainer)
    return None if scaler is None else scaler.scale(torch.ones((), device=device))
