"""Whether an optimizer can be used by Lightning, which gives each step a closure to call."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning_vlm_callbacks.run_length import longest_window
from lightning_vlm_callbacks.runs import loss_scaler
from torch.optim import Optimizer

from lightning_vlm.errors import UserError


def check_closure(make: Callable[[Any], Optimizer], trainer: Trainer) -> Optimizer:
    """Try an optimizer on one number, and refuse it if its steps would be wrong in a run.

    An optimizer such as LBFGS or SAM calls its closure several times a step. Lightning's closure runs the
    last micro-batch only, so that is right without accumulation alone; and a GradScaler, which `16-mixed`
    uses, gives it no closure.

    Args:
        make: From parameters to the optimizer.
        trainer: That will run it.
    Returns:
        The optimizer of that one number, such as for its defaults.

    Raises:
        UserError: Its `step` takes no closure, or never calls it; or it calls it several times and the
            Trainer accumulates gradients or scales the loss.
    """
    trial = make([torch.nn.Parameter(torch.zeros(1))])
    name = type(trial).__name__
    try:
        inspect.signature(type(trial).step).bind(trial, closure=None)
    except TypeError:
        raise UserError(
            f"model.optimizer: found {name}, whose step takes no argument named closure; expected "
            "step(self, closure=None), which calls the closure once for the gradients"
        ) from None
    calls = _count_calls(trial)
    if calls == 0:
        raise UserError(
            f"model.optimizer: found {name}, whose step doesn't call the closure that it is given, so that "
            "nothing would be learned; call it at the beginning of step"
        )
    if calls is not None and calls > 1:
        window = longest_window(trainer)
        if window > 1:
            raise UserError(several_calls(name, window))
        if loss_scaler(trainer) is not None:
            raise UserError(
                f"model.optimizer: found {name}, which calls its closure several times a step, with "
                f"trainer.precision {trainer.precision}, whose loss scaling allows one; choose bf16-mixed"
            )
    return trial


def several_calls(name: str, window: int) -> str:
    """The message where an optimizer calls its closure several times under accumulation."""
    return (
        f"model.optimizer: found {name}, which calls its closure several times a step, with "
        f"trainer.accumulate_grad_batches {window}: only the last micro-batch would be run again; set it to "
        "1, or choose another optimizer"
    )


def no_call(name: str) -> str:
    """The message where an optimizer didn't call its closure in a step of a run."""
    return (
        f"model.optimizer: {name} didn't call the closure that its step was given, so that nothing was "
        "learned from the batch"
    )


def _count_calls(trial: Optimizer) -> int | None:
    """How often a step calls its closure; None if the optimizer can't step on one number."""
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        for group in trial.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        return torch.ones(())

    with torch.random.fork_rng(devices=[]):
        try:
            trial.step(closure)  # type: ignore[arg-type]
        except Exception:
            return None
    return calls
