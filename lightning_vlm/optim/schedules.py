"""Learning rate schedules: pure functions of progress, without state, so that resuming needs nothing.

A schedule turns progress (0 before training, 1 after it) into a factor on the learning rate. `lr_lambda`
makes it a function of the optimizer step: of n steps, step k = 0, 1, ... uses the factor at its middle,
(k + 0.5) / n. So no step is wasted on a rate of zero, neither the first, where warm-up starts, nor the last,
before a floor of zero. Progress stops at 1, so that no rate rises again after the last step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_vlm.curve import Curve, Point
from lightning_vlm.errors import UserError


class Schedule(ABC):
    """A factor on the learning rate as a function of progress: the type to ask for in a config.

    Subclasses are frozen dataclasses whose fields are all fractions, 0 to 1: shares of training or factors on
    the learning rate.

    Raises:
        UserError: A field is not a number from 0 to 1, or the warm-up takes all of training.
    """

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, name)
            # Users of other libraries may give a number of steps instead of a share.
            if not 0 <= value <= 1:  # also false for NaN
                raise UserError(
                    f"{type(self).__name__}: found {name}={value}; expected a fraction from 0 to 1 "
                    "(of training or of the learning rate, not a number of steps or a rate)"
                )
            if name == "warmup" and value == 1:
                raise UserError(
                    f"{type(self).__name__}: found warmup=1, which is all of training; expected less than 1"
                )

    def __call__(self, progress: float) -> float:
        """The factor on the learning rate.

        Args:
            progress: How much of training is done, 0 to 1; what lies outside counts as 0 or 1.
        Returns:
            The factor, 0 to 1.
        """
        return self.factor(min(max(progress, 0.0), 1.0))

    def at(self, step: int, total_steps: int) -> float:
        """The factor at an optimizer step, counted from 0: that of its middle."""
        return self((step + 0.5) / total_steps)

    @abstractmethod
    def factor(self, progress: float) -> float:
        """The factor at a progress that is known to lie in 0 to 1."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The full learning rate, after a linear warm-up.

    Args:
        warmup: Share of training in which the factor grows from 0 to 1.

    >>> [Constant(warmup=0.1)(progress) for progress in (0, 0.05, 0.1, 1)]
    [0.0, 0.5, 1.0, 1.0]
    """

    warmup: float = 0.0

    def factor(self, progress: float) -> float:
        """See `Schedule`."""
        return Curve([Point(0, 0.0), Point(self.warmup, 1.0)])(progress)


@dataclass(frozen=True)
class Linear(Schedule):
    """A linear warm-up, then a straight line down to the floor.

    Args:
        warmup: Share of training in which the factor grows from 0 to 1.
        floor: The factor at the end.

    >>> [Linear(warmup=0.5, floor=0.2)(progress) for progress in (0.25, 0.5, 0.75, 1, 2)]
    [0.5, 1.0, 0.6, 0.2, 0.2]
    """

    warmup: float = 0.0
    floor: float = 0.0

    def factor(self, progress: float) -> float:
        """See `Schedule`."""
        return Curve([Point(0, 0.0), Point(self.warmup, 1.0), Point(1, self.floor)])(progress)


@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up, then half a cosine down to the floor (Loshchilov and Hutter 2017, without restarts).

    Args:
        warmup: Share of training in which the factor grows from 0 to 1.
        floor: The factor at the end.

    >>> [round(Cosine(warmup=0.2)(progress), 3) for progress in (0.1, 0.2, 0.4, 0.6, 1, 2)]
    [0.5, 1.0, 0.854, 0.5, 0.0, 0.0]
    """

    warmup: float = 0.0
    floor: float = 0.0

    def factor(self, progress: float) -> float:
        """See `Schedule`."""
        return Curve([Point(0, 0.0), Point(self.warmup, 1.0, "smooth"), Point(1, self.floor)])(progress)


@dataclass(frozen=True)
class ThreePhase(Schedule):
    """Three phases: linear warm-up, main training at the full rate, cosine refinement.

    The default start and floor are 1e-6 and 1e-5 for a learning rate of 2e-4.

    Args:
        warmup: Share of training in which the factor grows from `start` to 1.
        refinement: Share of training, at its end, in which the factor falls from 1 to `floor`.
        start: The factor at the beginning.
        floor: The factor at the end.

    Raises:
        UserError: As in `Schedule`, or warm-up and refinement together take more than all of training.

    >>> schedule = ThreePhase()
    >>> [f"{2e-4 * schedule(progress):.0e}" for progress in (0, 0.1, 0.7, 1)]
    ['1e-06', '2e-04', '2e-04', '1e-05']
    """

    warmup: float = 0.1
    refinement: float = 0.3
    start: float = 0.005
    floor: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        # A sum slightly above 1 is a rounding error, such as that of 0.7 + 0.3.
        if self.warmup + self.refinement > 1 + 1e-9:
            raise UserError(
                f"ThreePhase: found warmup={self.warmup} and refinement={self.refinement}; "
                "expected two shares of training that are at most 1 together"
            )

    def factor(self, progress: float) -> float:
        """See `Schedule`."""
        points = [Point(0, self.start), Point(self.warmup, 1.0)]
        if self.refinement:
            points += [Point(1 - self.refinement, 1.0, "smooth"), Point(1, self.floor)]
        return Curve(points)(progress)


def lr_lambda(schedule: Schedule, total_steps: int) -> Callable[[int], float]:
    """A schedule over a number of optimizer steps, for `torch.optim.lr_scheduler.LambdaLR`.

    Args:
        schedule: Factor as a function of progress.
        total_steps: Optimizer steps in all of training, at least 1.
    Returns:
        The factor for step 0, 1, ..., at (step + 0.5) / total_steps; from `total_steps` on, the last value of
        the schedule. A plain function, so that `LambdaLR.state_dict()` holds nothing but numbers.

    Raises:
        UserError: There are no steps.

    >>> factor = lr_lambda(Linear(), total_steps=4)
    >>> [factor(step) for step in range(6)]
    [0.875, 0.625, 0.375, 0.125, 0.0, 0.0]
    """
    # Lightning says inf or -1 where it doesn't know.
    if not 1 <= total_steps < math.inf:
        raise UserError(
            f"a learning rate schedule needs to know the length of training: found {total_steps} steps, "
            "expected at least 1; set max_steps or max_epochs of the trainer"
        )
    return lambda step: schedule.at(step, total_steps)


def settle_rates(scheduler: LambdaLR) -> None:
    """Give an optimizer the rates of the step that comes next, after a schedule's length has changed.

    `LambdaLR` computes rates only as a step ends, so the next step would still have those of the old length.

    >>> import torch
    >>> optimizer, total = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 2
    >>> scheduler = LambdaLR(optimizer, lambda step: lr_lambda(Linear(), total)(step))
    >>> total = 4
    >>> settle_rates(scheduler)
    >>> optimizer.param_groups[0]["lr"]
    0.875
    """
    rates = []
    for group, base, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        rate = base * factor(scheduler.last_epoch)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        rates.append(group["lr"])
    scheduler._last_lr = rates
