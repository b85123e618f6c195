"""Weights of tasks that balance themselves by the norms of the tasks' gradients."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.curves import History, need_matplotlib, save_curves
from lightning_vlm_callbacks.gradnorm.solver import closed_form, paper, relative_rates
from lightning_vlm_callbacks.gradnorm.task_gradients import StepGradients, TaskGradients
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.runs import run_folder
from lightning_vlm_callbacks.selectors import select_modules
from lightning_vlm_callbacks.task_weights import InitialLosses, task_weights_of
from lightning_vlm_callbacks.whole_steps import (
    need_initialized,
    need_lightning,
    need_one_closure,
    need_whole_steps,
    several_closures,
)

__all__ = ["GradNorm"]

KINDS = ("weight", "norm", "weighted_norm", "rate")
"""What is logged of each task; norms are of its gradient before its weight, and as weighted."""


class GradNorm(Callback):
    """GradNorm (Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257): tasks train at like rates.

    The weights of tasks are moved towards those at which the norm of every task's weighted gradient, on one
    layer that all share, is in proportion to r^alpha. r is how far behind a task is: L(t)/L(0) over its mean.
    Weights are positive, and their sum is the number of tasks, so that they don't change the learning rate.
    New weights count from the next step on.

    Works with any module that has a `TaskWeights`: its docstring shows the two lines that are needed. If each
    sample belongs to one task (`rows`), all gradients come from the ordinary backward, which costs as much as
    that layer's weight gradient; the layer may be frozen or quantised. It is exact unless samples change one
    another: batch norms that train and tied weights are refused; experts with a shared capacity and losses
    across the batch would silently give wrong norms. If tasks share inputs (`total`), there is a backward
    pass for each task, so set `every_n_steps`.

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
        initial_losses: L(0) by task where it is known in theory, such as log C for C classes. Else L(0) is
            the mean of the first `initial_steps` measured losses.
        initial_steps: See `initial_losses`.
        unbiased: Remove the noise of small batches from the norms, which makes the gradients of rare tasks
            look large. Only what micro-batches and ranks have in common counts, averaged over about 10
            measurements. So each task must sometimes occur in two micro-batches or ranks of a step.
        packed: Rows hold several samples that do not see each other (block-diagonal attention).
        sketch: Width of a random projection of the gradients, for a layer too large to keep a copy per task.
        picture: Draw `gradnorm.png` at the end.
        dirpath: Where it goes; None is the run's folder (`save_dir/name/version` of the logger).

    Raises:
        MisconfigurationException: An argument is out of range. Or, when the fit begins: the module has no
            TaskWeights, or changes them itself; no layer, or several; one device or DDP isn't the strategy.
        SelectorError: `layer` finds nothing.
        ModuleNotFoundError: `picture` without matplotlib.
    """

    def __init__(
        self,
        alpha: float = 1.5,
        layer: str | None = None,
        every_n_steps: int = 1,
        solver: Literal["closed_form", "paper"] = "closed_form",
        rate: float = 0.1,
        initial_losses: dict[str, float] | None = None,
        initial_steps: int = 10,
        unbiased: bool = False,
        packed: bool = False,
        sketch: int | None = None,
        picture: bool = True,
        dirpath: str | None = None,
    ) -> None:
        super().__init__()
        if solver not in ("closed_form", "paper"):
            raise MisconfigurationException(f"solver: found {solver!r}; expected closed_form or paper")
        if not alpha >= 0:
            raise MisconfigurationException(f"alpha: found {alpha}; expected a number >= 0")
        if not 0 < rate <= 1:
            raise MisconfigurationException(f"rate: found {rate}; expected a number in (0, 1]")
        whole = {"every_n_steps": every_n_steps, "initial_steps": initial_steps, "sketch": sketch}
        for key, value in whole.items():
            if value is not None and value < 1:
                raise MisconfigurationException(f"{key}: found {value}; expected 1 or more")
        for task, loss in (initial_losses or {}).items():
            if not 0 < loss < float("inf"):
                raise MisconfigurationException(f"initial_losses.{task}: found {loss}; expected a number > 0")
        self.alpha, self.layer, self.every_n_steps, self.rate = alpha, layer, every_n_steps, rate
        self.solver = {"closed_form": closed_form, "paper": paper}[solver]
        self.initial_losses, self.initial_steps = initial_losses or {}, initial_steps
        self.unbiased, self.packed, self.sketch = unbiased, packed, sketch
        self.picture, self.dirpath = picture, dirpath
        self._loaded: dict[str, Any] | None = None
        self._gradients: TaskGradients | None = None
        self._history = History()

    # Hooks

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        need_lightning("GradNorm", trainer)
        if stage != "fit":
            return
        need_whole_steps("GradNorm", trainer, pl_module)
        if self.picture:
            need_matplotlib("GradNorm(picture=False)")
        self._folder = run_folder(trainer, self.dirpath)

    def check_selectors(self, root: nn.Module, may_train: Collection[nn.Parameter] = ()) -> None:
        """Raise a SelectorError if `layer` finds nothing in a model; `may_train` doesn't matter here."""
        if self.layer is not None:
            select_modules(root, self.layer)

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        need_initialized("GradNorm", pl_module)
        need_one_closure("GradNorm", trainer.optimizers)
        try:
            tasks = task_weights_of(pl_module)
            given = {tasks.index(task): loss for task, loss in self.initial_losses.items()}
        except ValueError as error:
            raise MisconfigurationException(f"GradNorm: {error}") from None
        if tasks.set_by is not None:
            raise MisconfigurationException(
                f"GradNorm: found weights of tasks that {tasks.set_by} changes; expected one of the two"
            )
        # Fewer parameters may require gradients now than when the run began.
        before = self._loaded.get("layer") if self._loaded else None
        name, layer = _layer(pl_module, self.layer, before)
        _refuse_tied(pl_module, name, layer)
        self._module, self._tasks = pl_module, tasks
        self._gradients = TaskGradients(layer, name, tasks, self.packed, self.sketch)
        weights = tasks.weights
        weights *= len(weights) / weights.sum()
        self._initial = InitialLosses(len(weights), self.initial_steps, weights.device)
        self._norms, self._losses, self._squares = (torch.full_like(weights, torch.nan) for _ in range(3))
        self._pending: tuple[int, Tensor, Tensor] | None = None
        self._history = History()
        if given:
            known = torch.full_like(weights, torch.nan)
            for task, loss in given.items():
                known[task] = loss
            self._initial.set(known)
        if self._loaded is not None:
            self._restore(self._loaded)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._loggers = trainer.loggers if every else []
        self._every = every or 50  # Lightning's default, for the picture alone
        self._stepped = self._has_loss = False
        once = "weights change only once, after the first step"
        warn_if_beyond(trainer, "GradNorm: every_n_steps", self.every_n_steps, once)
        rank_zero_info(f"GradNorm: {len(weights)} tasks ({', '.join(tasks.names)}), layer {name}")

    @override
    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        gradients = self._gradients
        assert gradients is not None
        self._stepped = False
        if not gradients.open and trainer.global_step % self.every_n_steps == 0:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            one = torch.ones((), device=pl_module.device)
            scale = None if scaler is None else scaler.scale(one)
            gradients.begin(scale, trainer.accumulate_grad_batches)

    @override
    def on_before_backward(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor
    ) -> None:
        self._has_loss = True

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        if self._stepped:  # the new weights for the next step are already set
            raise several_closures("GradNorm", optimizer)
        self._stepped = True
        self._read()
        gradients = self._gradients
        if gradients is None or not gradients.open:
            return
        if not self._has_loss:  # `training_step` returned None, so Lightning skips the backward
            gradients.stop()
            return
        self._has_loss = False
        self._refuse_wrong(pl_module, gradients)
        found = gradients.finish(trainer.world_size)
        weights = self._tasks.weights.clone()
        self._update(found)
        step = trainer.global_step
        if (step + 1) // self._every != (step + 1 - self.every_n_steps) // self._every:
            self._pending = (step, self._table(weights), found.cosines())

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._read()
        if self.picture and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._draw()

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
            self._gradients = None

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._gradients is None:
            return self._loaded or {}
        self._read()
        history = self._history
        return {
            "tasks": list(self._tasks.names),
            "layer": self._gradients.name,
            "weights": self._tasks.weights.clone(),
            "initial": self._initial.state_dict(),
            "norms": self._norms.clone(),
            "losses": self._losses.clone(),
            "squares": self._squares.clone(),
            "history": [history.every, history.offered, list(history.points)],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict or None

    # A step

    def _update(self, found: StepGradients) -> None:
        """Move the weights. The host doesn't wait for the device."""
        tasks = self._tasks
        weights = tasks.weights
        # Norms are measured without the task's weight, so that those of different steps are comparable.
        unit = tasks.scale / weights
        if self.unbiased:
            estimate = found.squares.to(weights.dtype) * unit**2
            old = torch.where(self._squares.isfinite(), self._squares, estimate)
            self._squares = torch.where(estimate.isfinite(), 0.9 * old + 0.1 * estimate, self._squares)
            norms = self._squares.clamp(min=0).sqrt()
        else:
            norms = found.norms.to(weights.dtype) * unit
        losses = (found.sums / found.counts).to(weights.dtype)  # NaN where a task wasn't there
        fine = norms.isfinite() & losses.isfinite()
        self._initial.add(losses, fine)
        self._losses = torch.where(fine, losses, self._losses)
        self._norms = torch.where(fine, norms, self._norms)
        known = self._initial.known & (self._norms > 0) & self._losses.isfinite()
        rates = relative_rates(self._losses, self._initial.mean(), known)
        weights.copy_(self.solver(weights, self._norms, rates, known, self.alpha, self.rate))

    def _refuse_wrong(self, root: nn.Module, gradients: TaskGradients) -> None:
        """Only after a backward is it known which way the module goes."""
        if self._tasks.rows is not None:
            for name, one in root.named_modules():
                if isinstance(one, _BatchNorm) and one.training:
                    raise MisconfigurationException(
                        f"GradNorm: found {name}, a batch norm, through which samples of one task change "
                        "those of another; freeze it in eval mode, or let tasks share inputs: "
                        "TaskWeights.total"
                    )
        if not gradients.calls and (self._tasks.rows is None or bool((self._tasks.rows >= 0).any())):
            raise MisconfigurationException(
                f"GradNorm: layer {gradients.name} had no part in the loss, or the module called neither "
                "TaskWeights.total nor set TaskWeights.rows; choose a layer that all tasks go through"
            )

    # Logging and pictures

    def _table(self, weights: Tensor) -> Tensor:
        """A row for each of `KINDS`, a column for each task."""
        known = self._initial.known & self._losses.isfinite()
        rates = relative_rates(self._losses, self._initial.mean(), known)
        return torch.stack((weights, self._norms, weights * self._norms, rates))

    def _read(self) -> None:
        """Log what was measured a step ago. The host waits here, at steps that log."""
        if self._pending is None:
            return
        (step, table, cosines), self._pending = self._pending, None
        names = self._tasks.names
        values = {
            f"gradnorm/{kind}/{name}": value
            for kind, row in zip(KINDS, table.tolist(), strict=True)
            for name, value in zip(names, row, strict=True)
            if value == value  # NaN means not known yet
        }
        self._history.add(step, values)
        for a, row in enumerate(cosines.tolist()):
            for b in range(a):
                if row[b] == row[b]:
                    values[f"gradnorm/cosine/{names[b]}-{names[a]}"] = row[b]
        for logger in self._loggers:
            logger.log_metrics(values, step=step)

    def _draw(self) -> None:
        """Weights, weighted norms and rates over steps."""
        panels = {"weight": "weight", "norm of the weighted gradient": "weighted_norm", "rate": "rate"}
        names = {key for _, values in self._history.points for key in values}
        curves = {
            title: {
                task: self._history.curve(f"gradnorm/{kind}/{task}")
                for task in self._tasks.names
                if f"gradnorm/{kind}/{task}" in names
            }
            for title, kind in panels.items()
        }
        shown = {title: some for title, some in curves.items() if some}
        if shown:
            save_curves(self._folder / "gradnorm.png", shown, log=list(shown))

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["tasks"] != list(self._tasks.names):
            raise MisconfigurationException(
                f"GradNorm: found tasks {', '.join(self._tasks.names)}, but the checkpoint has "
                f"{', '.join(state['tasks'])}; continue with the same data, or start a new run"
            )
        device = self._tasks.weights.device
        self._tasks.weights.copy_(state["weights"])
        self._initial.load_state_dict(state["initial"])
        self._norms, self._losses, self._squares = (
            state[key].to(device).clone() for key in ("norms", "losses", "squares")
        )
        history = self._history
        history.every, history.offered, points = state["history"]
        history.points = [(step, dict(values)) for step, values in points]


def _layer(root: nn.Module, selector: str | None, before: str | None = None) -> tuple[str, nn.Module]:
    """The layer that is meant, and its name.

    Args:
        root: The module that it is in.
        selector: Of the layer, if one was given.
        before: The name of the layer that a resumed run measured; taken if there is no selector.
    """
    if selector is not None:
        found = select_modules(root, selector)
        if len(found) != 1:
            raise MisconfigurationException(
                f"layer {selector!r}: found {len(found)} modules ({', '.join(list(found)[:4])}); expected one"
            )
        return next(iter(found.items()))
    if before is not None:
        there = dict(root.named_modules())
        if before not in there:
            raise MisconfigurationException(
                f"GradNorm: the checkpoint measured layer {before}, which the model doesn't have; resume "
                "with the same model, or set layer"
            )
        return before, there[before]
    inside = {
        name: one
        for name, one in root.named_modules()
        if isinstance(one, nn.Linear) and any(word.isdigit() for word in name.split("."))
    }
    lora = [name for name in inside if ".lora_B." in name and inside[name].weight.requires_grad]
    others = [name for name in inside if ".lora_" not in name]
    for names in (lora, others):
        if names:
            return names[-1], inside[names[-1]]
    linear = [name for name, one in root.named_modules() if isinstance(one, nn.Linear)]
    raise MisconfigurationException(
        "GradNorm: found no linear layer inside a list of layers, and can't know which one all tasks share; "
        f"set layer to one of {', '.join(linear) or 'the linear layers, of which there are none'}"
    )


def _refuse_tied(root: nn.Module, name: str, layer: nn.Module) -> None:
    weight = getattr(layer, "weight", None)
    names = [other for other, one in root.named_parameters(remove_duplicate=False) if one is weight]
    if len(names) > 1:
        raise MisconfigurationException(
            f"layer {name}: found a weight that is shared ({', '.join(names)}), whose gradient has a part "
            "that the layer doesn't see; choose another layer"
        )
