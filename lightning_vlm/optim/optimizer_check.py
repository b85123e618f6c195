"""Whether an optimizer takes the values that a config gives it, before a model is loaded for it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import one_line
from lightning_vlm.optim.clipping import limits_of
from lightning_vlm.optim.schedules import Schedule


def check_optimization(
    optimizer: Callable[[Any], Optimizer], schedule: Schedule, clip: float | Mapping[str, float] | None
) -> None:
    """Check what needs no model of the settings of a `VLMModule`.

    Raises:
        UserError: As from `rate_of`, no schedule, or a limit of clipping that is no number above 0.
    """
    rate_of(optimizer)
    if isinstance(schedule, str | type):
        found = schedule if isinstance(schedule, str) else schedule.__name__
        raise UserError(f"schedule: found {found}; expected a Schedule, such as Cosine(warmup=0.03)")
    if clip is not None:
        limits_of(clip)


def rate_of(optimizer: Callable[[Any], Optimizer]) -> float:
    """The learning rate of an optimizer, which is made for a moment.

    Args:
        optimizer: Makes one of parameters.

    Raises:
        UserError: It refuses its values, or its rate is no number above 0.

    >>> rate_of(lambda parameters: torch.optim.AdamW(parameters, lr=2e-4))
    0.0002
    >>> rate_of(lambda parameters: torch.optim.AdamW(parameters, lr=-1))
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: model.optimizer: Invalid learning rate: -1
    """
    if not callable(optimizer):
        found = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
        raise UserError(
            f"optimizer: found {found}; expected "
            "what makes one of parameters, such as partial(torch.optim.AdamW, lr=1e-4)"
        )
    try:
        made = optimizer([nn.Parameter(torch.zeros(1, 1))])  # a matrix, as some take nothing else
    except (ValueError, TypeError) as error:
        why = one_line(str(error), 200)
        if "not supported between" in why:
            what = "null" if "NoneType" in why else "a text"
            why = f"one of its values is {what}; expected a number"
        raise UserError(f"model.optimizer: {why}") from error
    rate = made.defaults.get("lr")
    if rate is None:
        return math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"model.optimizer.lr: found {rate}; expected a number above 0")
    return float(rate)
