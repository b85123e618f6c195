"""The optimizer steps of a fit: how many there are, and what happens in each."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.run_length import steps_of_run
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import TaskSums
from lightning_vlm.losses.tasks import FixedWeights, TaskLog, Uncertainty, make_task_weights
from lightning_vlm.optim import clip_gradients, clip_groups, lr_lambda, settle_rates
from lightning_vlm.optim.clipping import ALL
from lightning_vlm.optim.closures import no_call, several_calls
from lightning_vlm.optim.optimizer import make_optimizer
from lightning_vlm.step import StepClosure, StepLoss, WholeStep
from lightning_vlm.training.resume import AccumulationWindow
from lightning_vlm.training.stages.stage import stage_factor, stages_of

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class OptimizerSteps:
    """Runs the optimizer steps of a fit with gradients of the loss over each whole step.

    Args:
        window: Is kept up to date with when the optimizer changes weights.
        tasks: The weights of tasks; None outside of a fit, where a training step may be tried alone.
    """

    def __init__(self, window: AccumulationWindow, tasks: FixedWeights | None = None) -> None:
        tasks = tasks or make_task_weights(None, [OTHER])
        self.log = TaskLog(tasks)
        """The losses of tasks since they were last logged."""
        self.last_was_empty = False
        """Whether the last step was skipped because no token in it has weight."""
        self.total = 0
        """Optimizer steps of the whole run, known from `configure` on."""
        self.tokens_seen = 0
        """Tokens of this process that went through training steps, padding not counted."""
        self.clip_groups: tuple[dict[str, list[nn.Parameter]], dict[str, float]] = ({}, {})
        """What is clipped together, and to which norm; see `clip_groups`."""
        self._tasks = tasks
        self._window = window
        self._loss = StepLoss()
        self._shown_next: tuple[int, HostCopy] | None = None

    def configure(self, module: "VLMModule") -> OptimizerLRSchedulerConfig:
        """The optimizer of a module, and the schedule of its learning rates over the whole run."""
        of_tasks = {"tasks": 0.01} if isinstance(self._tasks, Uncertainty) else {}
        rates = {**of_tasks, **module.learning_rates}
        optimizer = make_optimizer(module.optimizer, module, rates, module.trainer)
        self.total = total_steps(module.trainer)
        scheduler = LambdaLR(optimizer, lambda step: self._factor(module, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, module: "VLMModule", step: int) -> float:
        """The factor on learning rates at a step: of the whole run, or of its stage."""
        stages = stages_of(module.trainer)
        if stages is None:
            return lr_lambda(module.schedule, self.total)(step)
        return stage_factor(stages, module.schedule, step)

    def find_clip_groups(self, module: "VLMModule") -> None:
        """Find what is clipped together, of all that trains now; of tasks' weights nothing is.

        Raises:
            UserError: As `clip_groups`.
        """
        self.clip_groups = clip_groups(module, module.clip, self._tasks.parameters())

    def clip(self, module: "VLMModule") -> None:
        """Clip the gradients, and log their norms from before; of a step that is skipped there are none."""
        if all(weight.grad is None for group in self.clip_groups[0].values() for weight in group):
            log_no_more(module.trainer, ("train/grad_norm",))
            return
        for name, norm in clip_gradients(*self.clip_groups).items():
            key = "train/grad_norm" if name == ALL else f"train/grad_norm/{name}"
            module.log(key, norm, on_step=True, on_epoch=False)

    def start(self, trainer: Trainer) -> None:
        """Begin to train, at the beginning of a window, and settle how long the schedule is."""
        self.tokens_seen = 0
        self._loss = StepLoss()
        self._shown_next = None
        # A tuner such as BatchSizeFinder changes the number of steps after the optimizer was configured, and
        # a resumed run may be longer than it was.
        self.total = total_steps(trainer)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):
                settle_rates(config.scheduler)

    def start_batch(self, tokens: int, targets: int) -> None:
        """Count the tokens of the micro-batch that comes next, and those of them that have weight."""
        self.tokens_seen += tokens
        self._loss.targets += targets

    def add(self, losses: TaskSums) -> Tensor:
        """Add a micro-batch; returns the loss to run backward from."""
        return self._loss.add(*losses)

    def run(
        self,
        module: "VLMModule",
        batch_idx: int,
        run_closure: Callable[[], Any],
        step: Callable[[Callable[[], Any]], None],
    ) -> WholeStep:
        """Make an optimizer step, or skip one in which no token has weight.

        A skipped step logs nothing, and the schedule waits. `global_step` counts it all the same, since
        lengths of runs are counted so.

        Args:
            module: That trains.
            batch_idx: The last batch of the step.
            run_closure: Lightning's closure: forward and backward of the last micro-batch.
            step: Lets the optimizer step with a closure.

        Raises:
            UserError: The optimizer doesn't call its closure, or calls it again where a window has several
                micro-batches.
        """
        closure = StepClosure(
            run=run_closure,
            divide=lambda: self._divide(module),
            record=lambda found: self._record(module, found),
            repeat=lambda: self._prepare_repeat(module, batch_idx),
        )
        may_be_empty = self._loss.targets == 0
        self.last_was_empty = may_be_empty and closure.run_ahead().empty
        if self.last_was_empty:
            self._skip(module)
        else:
            step(closure)
        if closure.step is None:
            raise UserError(no_call(_optimizer_name(module)))
        self._end(module, closure.step, batch_idx)
        return closure.step

    def _divide(self, module: "VLMModule") -> WholeStep:
        trainer = module.trainer
        found = self._loss.divide(
            module.parameters(), self._tasks.weights, trainer.accumulate_grad_batches, trainer.world_size
        )
        self._tasks.scale = found.factor
        self._window.stepping = True
        return found

    def _record(self, module: "VLMModule", found: WholeStep) -> None:
        self.log.add(found.sums, found.counts, module.trainer)
        module.log("train/loss", found.loss, on_step=True, on_epoch=False)
        self._show(module)
        self._shown_next = module.trainer.global_step, HostCopy(found.loss)

    def _show(self, module: "VLMModule") -> None:
        """Show the loss of the step before in a progress bar, and whether it is finite; to do so with each
        step's own would wait for it."""
        if self._shown_next is None:
            return
        step, copy = self._shown_next
        self._shown_next = None
        loss = copy.read().item()
        module.trainer.progress_bar_metrics["train/loss"] = loss
        module.callbacks.finite.see_loss(module.trainer, step, loss)

    def end(self, module: "VLMModule") -> None:
        """Log and show what waits for that, when training ends."""
        self.log.write(module.trainer)
        self._show(module)

    def _prepare_repeat(self, module: "VLMModule", batch_idx: int) -> None:
        """Let an optimizer that calls its closure again get the same dropout."""
        window = module.trainer.accumulate_grad_batches
        if window > 1:
            raise UserError(several_calls(_optimizer_name(module), window))
        torch.manual_seed(module.callbacks.run_state.seed_of(module.trainer, batch_idx))

    def _skip(self, module: "VLMModule") -> None:
        self.log.write(module.trainer)
        log_no_more(module.trainer, ("train/loss", "train/grad_norm"))
        for parameter in module.parameters():
            parameter.grad = None

    def _end(self, module: "VLMModule", found: WholeStep, batch_idx: int) -> None:
        """Pass on what the step has found, and end its window."""
        if not found.empty:
            self._tasks.end_step(found.sums, found.counts)
        data = getattr(module.trainer, "datamodule", None)
        if isinstance(data, VLMDataModule):
            data.end_step(found.sums, found.counts, batch_idx)
        self._window.end_step(module.trainer, batch_idx)


def _optimizer_name(module: "VLMModule") -> str:
    return type(module.trainer.optimizers[0]).__name__


def log_no_more(trainer: Trainer, names: tuple[str, ...]) -> None:
    """Let a Trainer not log values of an earlier step again at a step that logs none of them.

    Args:
        trainer: Lightning repeats the last value of `self.log(..., on_step=True)` at each step of an epoch.
        names: What the names of the values begin with.
    """
    for result in (trainer._results or {}).values():
        if result.meta.name.startswith(names):
            result.has_reset = True  # until it is logged again


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps in the whole run that a trainer is set up for.

    Raises:
        UserError: It has no end.
    """
    stages = stages_of(trainer)
    if stages is not None:
        stages.settle()
        return trainer.max_steps
    data = getattr(trainer, "datamodule", None)
    batches = None
    if isinstance(data, VLMDataModule):
        # A loader made now would not be the one that a resumed run continues with.
        batches = data.batches_per_epoch(trainer.world_size, trainer.limit_train_batches)
    elif trainer.max_epochs not in (None, -1) and trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    steps = steps_of_run(trainer, batches)
    if steps == math.inf:
        raise UserError("the schedule needs an end; set trainer.max_steps or trainer.max_epochs")
    return int(steps)
