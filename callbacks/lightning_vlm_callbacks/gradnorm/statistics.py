"""What GradNorm knows of each task, from step to step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vlm_callbacks.gradnorm.solver import relative_rates
from lightning_vlm_callbacks.task_weights import InitialLosses

__all__ = ["TaskStatistics", "logged_values"]

LOGGED = ("weight", "norm", "weighted_norm", "rate")
"""What is logged of each task; norms are of its gradient before its weight, and as weighted."""

_INITIAL_STEPS = 10
"""L(0) is the mean of this many measured losses, because the loss of one batch is noisy."""


class TaskStatistics:
    """The last loss of each task, the last norm of its gradient before its weight, and L(0).

    A task that isn't in a step, or whose loss or gradient isn't finite there, keeps what it had.

    Args:
        tasks: How many there are.
        device: Where they are.
    """

    def __init__(self, tasks: int, device: torch.device | str = "cpu") -> None:
        self.initial = InitialLosses(tasks, _INITIAL_STEPS, device)
        self.losses = torch.full((tasks,), torch.nan, device=device)
        self.norms = torch.full((tasks,), torch.nan, device=device)

    def add(self, losses: Tensor, norms: Tensor) -> None:
        """Add a step.

        Args:
            losses: Tensor of shape [tasks], NaN where a task wasn't in the step.
            norms: Tensor of shape [tasks].
        """
        measured = norms.isfinite() & losses.isfinite()
        self.initial.add(losses, measured)
        self.losses = torch.where(measured, losses, self.losses)
        self.norms = torch.where(measured, norms, self.norms)

    @property
    def known(self) -> Tensor:
        """Which tasks have a loss and an L(0) above 0; shape [tasks], bool."""
        return self.initial.known & self.losses.isfinite()

    def rates(self, known: Tensor) -> Tensor:
        """The paper's r of the tasks that are known, 1 for the others; shape [tasks]."""
        return relative_rates(self.losses, self.initial.mean(), known)

    def table(self, weights: Tensor) -> Tensor:
        """What is logged: a row for each of `LOGGED`, a column for each task.

        Args:
            weights: Tensor of shape [tasks]: those of the step that was measured.
        """
        return torch.stack((weights, self.norms, weights * self.norms, self.rates(self.known)))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        initial = self.initial.state_dict()
        return {"initial": initial, "norms": self.norms.clone(), "losses": self.losses.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        device = self.losses.device
        self.initial.load_state_dict(state["initial"])
        self.norms = state["norms"].to(device).clone()
        self.losses = state["losses"].to(device).clone()


def logged_values(
    names: Sequence[str], table: list[list[float]], cosines: list[list[float]]
) -> dict[str, float]:
    """Values by the names under which they are logged; those that aren't known are NaN and are left out.

    Args:
        names: The tasks.
        table: `TaskStatistics.table`.
        cosines: `StepGradients.cosines`.

    >>> table = [[1.0, 3.0], [2.0, math.nan], [2.0, math.nan], [1.0, 1.0]]
    >>> values = logged_values(["a", "b"], table, [[1.0, 0.5], [0.5, 1.0]])
    >>> values["gradnorm/weight/b"], values["gradnorm/cosine/a-b"], "gradnorm/norm/b" in values
    (3.0, 0.5, False)
    """
    values = {}
    for kind, row in zip(LOGGED, table, strict=True):
        for name, value in zip(names, row, strict=True):
            values[f"gradnorm/{kind}/{name}"] = value
    for second, row in enumerate(cosines):
        for first in range(second):
            values[f"gradnorm/cosine/{names[first]}-{names[second]}"] = row[first]
    return {key: value for key, value in values.items() if not math.isnan(value)}
