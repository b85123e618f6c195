"""The learning rate schedules of transformers' Trainer, step by step, for runs that come from there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, get_scheduler

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.optim.schedules import Schedule

_NO_FACTOR = {
    "reduce_lr_on_plateau": "it follows a score instead of the step",
    "greedy": "it follows the loss instead of the step",
}
"""Kinds that are no function of the step, and why."""


@dataclass(frozen=True)
class TrainerSchedule(Schedule):
    """A schedule of transformers' Trainer: at each step exactly the rate that `Trainer` has there.

    Our own take a rate at the middle of a step, Trainer's at its start, so that a warm-up begins with a step
    at a rate of zero. `lightning-vlm migrate` writes this one, so that a run stays what it was.

    Args:
        kind: As `lr_scheduler_type`: `linear`, `cosine`, `constant_with_warmup`, `cosine_with_restarts`, ...
        warmup: Steps of warm-up if at least 1, else their share of all steps, rounded up, as `warmup_steps`.
        arguments: As `lr_scheduler_kwargs`. Rates among them are shares of the learning rate here:
            `{lr_end: 0.01}` for `polynomial`, `{min_lr_rate: 0.1}` for `cosine_with_min_lr`.

    Raises:
        UserError: An unknown kind, one that follows a score, a negative warm-up, or arguments that the kind
            doesn't have.

    >>> from lightning_vlm.optim import lr_lambda
    >>> factor = lr_lambda(TrainerSchedule("linear", warmup=2), total_steps=6)
    >>> [factor(step) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    kind: str = "linear"
    warmup: float = 0.0
    arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        known = [kind.value for kind in SchedulerType if kind.value not in _NO_FACTOR]
        if self.kind in _NO_FACTOR:
            raise UserError(f"TrainerSchedule: kind {self.kind} can't be used here: {_NO_FACTOR[self.kind]}")
        if self.kind not in known:
            raise UserError(
                f"TrainerSchedule: found kind {self.kind!r}; expected one of {', '.join(known)}"
                f"{did_you_mean(self.kind, known)}"
            )
        if not 0 <= self.warmup < math.inf:
            raise UserError(f"TrainerSchedule: found warmup={self.warmup}; expected steps or a share")
        if "min_lr" in (self.arguments or {}):
            raise UserError(
                "TrainerSchedule: found min_lr in arguments; write min_lr_rate, a share of the learning rate"
            )
        self.at(0, _MANY)  # what the kind can't have fails now, not as training begins

    def at(self, step: int, total_steps: int) -> float:
        """The factor at an optimizer step, counted from 0; after the last it stays."""
        warmup = int(self.warmup) if self.warmup >= 1 else math.ceil(total_steps * self.warmup)
        arguments = tuple(sorted((self.arguments or {}).items()))
        return _factor(self.kind, warmup, total_steps, arguments)(min(step, total_steps))

    def factor(self, progress: float) -> float:
        """See `Schedule`; of a run with a million steps."""
        return self.at(round(progress * _MANY), _MANY)


_MANY = 1_000_000


@lru_cache(maxsize=16)  # asked at each step of a run
def _factor(kind: str, warmup: int, total_steps: int, arguments: tuple[tuple[str, Any], ...]) -> Any:
    """The function of transformers itself."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        scheduler = get_scheduler(kind, optimizer, warmup, total_steps, dict(arguments))
    except (TypeError, ValueError) as error:
        given = dict(arguments)
        raise UserError(f"TrainerSchedule: {kind} can't have the arguments {given}: {error}") from None
    (factor,) = scheduler.lr_lambdas
    return factor
