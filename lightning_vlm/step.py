"""Optimizer steps: how many a run has, and the loss of each."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.requirements import require_whole_model
from lightning_vlm_callbacks.run_length import steps_of_run
from torch import Tensor, nn

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError

SCALE = 1024.0
"""Losses are sums over tokens; divided by this before the backward they stay within float16."""


class WholeStep(NamedTuple):
    """An optimizer step as a whole: every micro-batch of the accumulation window, every rank.

    Args:
        loss: Scalar: Σ wℓ / Σ w, where w of the numerator has the task's weight too; 0 if nothing has weight.
        factor: Scalar: what gradients were multiplied by.
        sums: Tensor of shape [tasks]: Σ wℓ of each task, before its weight.
        counts: Tensor of shape [tasks]: Σ w.
        empty: Whether no token on any rank has weight, so that there is nothing to learn from.
    """

    loss: Tensor
    factor: Tensor
    sums: Tensor
    counts: Tensor
    empty: bool


class StepLoss:
    """Σ wℓ / Σ w over an optimizer step, and the same sums for each task.

    The weight of a task is in the numerator only: a step of one task alone would not feel it otherwise.
    """

    def __init__(self) -> None:
        self.begin(torch.device("cpu"), 1)

    def begin(self, device: torch.device, tasks: int) -> None:
        """Begin a window."""
        self._sums = torch.zeros(2, tasks, device=device, dtype=torch.float32)
        self.targets = 0
        """How many tokens of this rank have weight in this window."""

    def add(self, loss_sum: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """Add a micro-batch; returns the loss to run backward from.

        Args:
            loss_sum: Scalar with a graph: the sum of weighted losses.
            sums: Tensor of shape [tasks], detached, as in `WholeStep`.
            counts: Tensor of shape [tasks], likewise.
        """
        self._sums += torch.stack((sums, counts))
        return loss_sum / SCALE

    def divide(
        self, parameters: Iterable[nn.Parameter], weights: Tensor, accumulate: int, world: int
    ) -> WholeStep:
        """Turn gradients of sums into those of the step's loss, in place, and end the window.

        The host waits for the device only if no token of this rank has weight: only then may the step be
        empty. All ranks agree, because a step is empty only if that is so on each of them.

        Args:
            parameters: Those without a gradient are passed over.
            weights: Tensor of shape [tasks]: the weights of tasks in this step.
            accumulate: What Lightning has divided the losses by: not the window's true length.
            world: The number of ranks, which DDP has divided the gradients by.
        """
        if world > 1:
            torch.distributed.all_reduce(self._sums)
        sums, counts = self._sums.unbind()
        weight_sum = counts.sum()
        factor = torch.where(weight_sum > 0, SCALE * accumulate * world / weight_sum, 0)
        gradients = [one.grad for one in parameters if one.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        loss = torch.where(weight_sum > 0, (weights * sums).sum() / weight_sum, 0)
        empty = self.targets == 0 and not bool(weight_sum > 0)
        self.begin(self._sums.device, len(sums))
        return WholeStep(loss, factor, sums, counts, empty)


class StepClosure:
    """What an optimizer calls in its step: forward and backward of the window's last micro-batch.

    Optimizers such as LBFGS or SAM call it several times. Each call then gives the gradient at the weights of
    that moment, but the step is recorded once, as the first call found it.

    Args:
        run: Lightning's closure.
        divide: Divides the gradients and ends the window.
        record: Called once, unless the step is empty.
        repeat: Called before every call but the first.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        divide: Callable[[], WholeStep],
        record: Callable[[WholeStep], None],
        repeat: Callable[[], None],
    ) -> None:
        self._run, self._divide, self._record, self._repeat = run, divide, record, repeat
        self._result: Any = None
        self._is_ahead = False
        self.step: WholeStep | None = None
        """The step as the first call found it; None until then."""

    def __call__(self) -> Any:
        if self._is_ahead:
            self._is_ahead = False
            return self._result
        if self.step is not None:
            self._repeat()
        self._result = self._run()
        step = self._divide()
        if self.step is None:
            self.step = step
            if not step.empty:
                self._record(step)
        return self._result

    def run_ahead(self) -> WholeStep:
        """Make the first call before the optimizer does, whose own first call then gives the same result."""
        self()
        self._is_ahead = True
        assert self.step is not None
        return self.step


def log_no_more(trainer: Trainer, names: tuple[str, ...]) -> None:
    """Let a Trainer not log values of an earlier step again at a step that logs none of them.

    Args:
        trainer: Lightning repeats the last value of `self.log(..., on_step=True)` at each step of an epoch.
        names: What the names of the values begin with.
    """
    for result in (trainer._results or {}).values():
        if result.meta.name.startswith(names):
            result.has_reset = True  # until it is logged again


def zero_loss(parameters: Iterable[nn.Parameter]) -> Tensor:
    """A zero whose backward reaches all parameters that train, so that DDP waits for none of them."""
    # One value of each: a sum over all could overflow, and 0 times infinity is NaN.
    return 0 * torch.stack([one.flatten()[0].float() for one in parameters if one.requires_grad]).sum()


def refuse_unsuited(strategy: Strategy, gradient_clip_val: float | None) -> None:
    """Refuse at setup what would be silently wrong.

    Raises:
        UserError: A strategy other than one device or DDP, or the Trainer's own clipping.
    """
    try:
        require_whole_model("VLMModule", strategy)
    except MisconfigurationException as error:
        raise UserError(str(error)) from None
    if gradient_clip_val is not None:
        raise UserError(
            f"found trainer.gradient_clip_val {gradient_clip_val}; clip with model.clip, which knows "
            "selectors (1.0 by default)"
        )


def refuse_rate_finder(trainer: Trainer) -> None:
    """Refuse Lightning's search for a learning rate, by callback or by `Tuner.lr_find`.

    Raises:
        UserError: It judges the loss that `training_step` returns, which here is a sum over the tokens of a
            micro-batch, and gives all groups of parameters one rate, which the schedule would then replace.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                f"found {type(callback).__name__}: it gives all parameters one learning rate, judged by sums "
                "over a batch, and the schedule replaces it; leave it out, and compare a few short runs with "
                "rates such as 1e-5, 5e-5 and 2e-4 (model.optimizer, model.learning_rates)"
            )


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps in the whole run that a trainer is set up for.

    Raises:
        UserError: It has no end.
    """
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
