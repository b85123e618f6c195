"""How often each task is drawn: by size, by hand, or by how far its loss has come."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from lightning_vlm_callbacks.task_weights import InitialLosses
from torch import Tensor

from lightning_vlm.data.conversation import TaskTable
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean, refuse_unknown_keys

Score = Literal["size", "hard", "easy", "weights"]


@dataclass(frozen=True)
class TaskSampling:
    """Draws the task of each training sample with P ∝ score^(1/temperature), and then the task's next sample.

    A temperature of 1 draws in proportion to scores; above it tasks become more alike; `.inf` draws all tasks
    equally often; T → 0 draws the task with the highest score only. Within a task no sample comes again
    before all others have come. An epoch stays as long as it was: as many samples as the data has, some of
    them twice and others not.

    This is how T5 (https://arxiv.org/abs/1910.10683) and mT5 (https://arxiv.org/abs/2010.11934) mix tasks and
    languages by size.

    Args:
        score: `size`: how many samples the task has (T5's rule with `limit`; mT5's α of 0.3 is a temperature
            of 1/0.3). `hard`: how much of its first loss is left, a mean of late steps over L(0), so that
            tasks that learn slowly come more often; `easy`: the inverse. `weights`: those given.
        temperature: See above.
        floor: This share of all draws is spread evenly, so that no task is forgotten.
        limit: The most that `size` counts of one task (T5's K).
        weights: Task -> score, one for each; 0 leaves a task out.
        grouped: All samples of a batch, on all ranks, are of one task.
        every_n_samples: From one change of P to the next, of `hard` and `easy`. P then counts from as many
            samples later, because batches are prepared ahead.

    Raises:
        UserError: An unknown score, or a number out of range.

    >>> TaskSampling(temperature=math.inf).probabilities([300, 100])
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    score: Score = "size"
    temperature: float = 1.0
    floor: float = 0.0
    limit: int | None = None
    weights: dict[str, float] | None = None
    grouped: bool = False
    every_n_samples: int = 2048

    def __post_init__(self) -> None:
        if self.score not in get_args(Score):
            raise UserError(
                f"sampling.score: found {self.score!r}; expected one of {', '.join(get_args(Score))}"
            )
        if (self.score == "weights") != (self.weights is not None):
            raise UserError(
                "sampling: score weights and the mapping weights go together; give both or neither"
            )
        if not self.temperature >= 0:
            raise UserError(f"sampling.temperature: found {self.temperature}; expected a number >= 0")
        if not 0 <= self.floor <= 1:
            raise UserError(f"sampling.floor: found {self.floor}; expected a share from 0 to 1")
        if self.limit is not None and (self.limit < 1 or self.score != "size"):
            raise UserError(f"sampling.limit: found {self.limit}; expected 1 or more, and score size")
        if self.every_n_samples < 1:
            raise UserError(f"sampling.every_n_samples: found {self.every_n_samples}; expected 1 or more")
        for task, weight in (self.weights or {}).items():
            if not 0 <= weight < math.inf:
                raise UserError(f"sampling.weights.{task}: found {weight}; expected a finite number >= 0")

    @classmethod
    def read(cls, given: "TaskSampling | Mapping[str, Any] | str | None") -> "TaskSampling | None":
        """From what a config or Python has: an object, its keys, or a word.

        `uniform` draws all tasks equally often, `grouped` draws batches of one task by size.

        Raises:
            UserError: Another word, or a key that there isn't.

        >>> TaskSampling.read({"temperature": 3}).temperature
        3
        """
        if isinstance(given, Mapping):
            refuse_unknown_keys(given, cls.__dataclass_fields__, "sampling")
            return cls(**given)
        if isinstance(given, str):
            ready = {"uniform": cls(temperature=math.inf), "grouped": cls(grouped=True)}
            if given not in ready:
                raise UserError(
                    f"sampling: found {given!r}; expected uniform, grouped, or keys such as score"
                )
            return ready[given]
        return given

    @property
    def by_loss(self) -> bool:
        """Whether P changes in the course of training."""
        return self.score in ("hard", "easy")

    def scores(self, table: TaskTable) -> list[float]:
        """Of each task, where no loss is needed.

        Raises:
            UserError: `weights` name a task that the data doesn't have, or lack one that it has; or nothing
                could be drawn.
        """
        if self.weights is not None:
            for task in self.weights.keys() - set(table.names):
                near = did_you_mean(task, table.names, quoted=True)
                raise UserError(
                    f"sampling.weights.{task}: the training data has no such task, only "
                    f"{', '.join(table.names)}{near}"
                )
            missing = [name for name in table.names if name not in self.weights]
            if missing:
                raise UserError(f"sampling.weights: found no weight for {', '.join(missing)}; give 0 or more")
            if not any(self.weights.values()):
                raise UserError("sampling.weights: found 0 for every task; give one of them more")
            return [self.weights[name] for name in table.names]
        sizes = torch.bincount(torch.tensor(table.of), minlength=len(table.names)).tolist()
        return [min(size, self.limit or size) for size in sizes]

    def probabilities(self, scores: "list[float] | list[int]") -> Tensor:
        """P of each task; float64, shape [tasks]. Scores of 0 are never drawn, even with a floor.

        >>> TaskSampling(temperature=2.0, floor=0.1).probabilities([9.0, 1.0, 0.0])
        tensor([0.7250, 0.2750, 0.0000], dtype=torch.float64)
        """
        score = torch.tensor(scores, dtype=torch.float64)
        there = score > 0
        if self.temperature == 0:
            share = (score == score.max()).double()
        elif self.temperature == math.inf:
            share = there.double()
        else:
            share = torch.softmax(score.log() / self.temperature, 0)
        return (1 - self.floor) * share / share.sum() + self.floor * there / there.sum()


class LossShares:
    """How much of its first loss each task has left: a mean over late steps, over L(0).

    Args:
        tasks: How many there are.
    """

    memory = 0.9
    """How much of the mean a step leaves."""
    first_steps = 10
    """L(0) is the mean over so many of a task's first steps."""

    def __init__(self, tasks: int) -> None:
        self._initial = InitialLosses(tasks, self.first_steps)
        self._late = torch.full((tasks,), torch.nan)

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Add a step; the host doesn't wait for the device.

        Args:
            sums: Tensor of shape [tasks]: of losses, over all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
        """
        if self._late.device != sums.device:
            known = self._initial.state_dict()
            self._initial = InitialLosses(len(sums), self.first_steps, sums.device)
            self._initial.load_state_dict(known)
            self._late = self._late.to(sums.device)
        losses = sums / counts
        seen = (counts > 0) & losses.isfinite()
        self._initial.add(losses, seen)
        old = torch.where(self._late.isfinite(), self._late, losses)
        self._late = torch.where(seen, self.memory * old + (1 - self.memory) * losses, self._late)

    def now(self) -> Tensor:
        """Shape [tasks]; 1 for tasks of which nothing is known yet, and never less than a millionth."""
        share = self._late / self._initial.mean()
        return torch.where(self._initial.known & share.isfinite(), share, 1).clamp(min=1e-6)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"initial": self._initial.state_dict(), "late": self._late.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._late = state["late"].to(self._late.device).clone()
        self._initial.load_state_dict(state["initial"])
