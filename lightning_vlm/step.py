"""The loss over one whole optimizer step: `StepLoss.divide` is where its gradients are divided.

`training/optimizer_steps.py` calls it in a run.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

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
        self._sums: Tensor | None = None
        self.targets = 0
        """How many tokens of this rank have weight in this window."""

    def add(self, loss_sum: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """Add a micro-batch; returns the loss to run backward from.

        Args:
            loss_sum: Scalar with a graph: the sum of weighted losses.
            sums: Tensor of shape [tasks], detached, as in `WholeStep`.
            counts: Tensor of shape [tasks], likewise.
        """
        both = torch.stack((sums, counts))
        self._sums = both if self._sums is None else self._sums + both
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
            world: The number of ranks, which DDP or FSDP2 has divided the gradients by.
        """
        assert self._sums is not None, "no micro-batch was added"
        if world > 1:
            torch.distributed.all_reduce(self._sums)
        sums, counts = self._sums.unbind()
        weight_sum = counts.sum()
        # Weights aren't negative, so this is 0 only where there are none; NaN stays NaN, and is seen.
        nothing = weight_sum == 0
        factor = torch.where(nothing, 0, SCALE * accumulate * world / weight_sum)
        gradients = [own_share(parameter.grad) for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        loss = torch.where(nothing, 0, (weights * sums).sum() / weight_sum)
        empty = self.targets == 0 and bool(nothing)
        self._sums = None
        self.targets = 0
        return WholeStep(loss, factor, sums, counts, empty)


def own_share(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be cut over processes; changes in place change that too."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
        self._run = run
        self._divide = divide
        self._record = record
        self._repeat = repeat
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
