"""The weights of tasks in the loss, and what a module reports of its tasks to callbacks."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["InitialLosses", "TaskWeights", "task_weights_of"]


class TaskWeights(nn.Module):
    """The weights of the tasks of a LightningModule: a small table that it keeps as a submodule.

    That is all that `GradNorm` needs of a module. Each `training_step` does one of two things.

    *Tasks share their inputs*, such as two heads on one trunk: the step passes the mean loss of each task.

        return self.tasks.total({"depth": depth_loss, "normals": normals_loss})

    *Each sample belongs to one task*: before the forward pass the step sets the task of each sample, and it
    weights the loss of each sample. Any other factor of the loss must be the same for all samples.

        self.tasks.rows = ids                        # int64 [batch], or [batch, length] of packed samples
        losses = ...                                             # [batch]
        self.tasks.add_rows(losses.detach(), ids)
        return (self.tasks.weights[ids] * losses).mean()

    Args:
        names: The tasks, in the order of their numbers.
        weights: Their weights; None is 1 for each.

    Raises:
        ValueError: No task, a task named twice, or weights that aren't one number > 0 for each.

    >>> tasks = TaskWeights(["vqa", "ocr"], [1.5, 0.5])
    >>> tasks.index("ocr")
    1
    >>> tasks.total({"vqa": torch.tensor(2.0), "ocr": torch.tensor(4.0)})
    tensor(5.)
    """

    weights: Tensor
    """Tensor of shape [tasks], float32; part of the module's state."""

    def __init__(self, names: Sequence[str], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.names = tuple(names)
        has_repeated = len(set(self.names)) < len(self.names)
        if not self.names or has_repeated:
            raise ValueError(f"tasks: found {list(names)}; expected one or more names, each once")
        if weights is None:
            weights = [1.0] * len(names)
        table = torch.tensor(weights, dtype=torch.float32)
        are_valid = (table > 0) & table.isfinite()
        if len(weights) != len(names) or not are_valid.all():
            raise ValueError(f"weights: found {list(weights)}; expected {len(names)} finite numbers > 0")
        self.register_buffer("weights", table)
        # Sums and counts aren't buffers, because DDP copies the first rank's buffers to all before a forward.
        self._added: tuple[Tensor, Tensor] | None = None
        self.scale = torch.ones(())
        """What the loss that backward starts from must be multiplied by to be the step's loss, known by the
        end of the step's last backward. For modules that return sums, and divide gradients themselves."""
        self.rows: Tensor | None = None
        """The task of each row of the layers' inputs in the next forward pass: a Tensor of shape [rows]; or,
        where samples are packed into rows, of each of their tokens: [rows, length], of inputs [rows, length,
        ...]. int64, -1 where there is no task, on the CPU, as the host reads it. None if tasks share rows."""
        self.set_by: str | None = None
        """What changes the weights during training, in a few words; None if nothing does."""
        self.on_losses: Callable[[Mapping[str, Tensor]], None] | None = None
        """Called with what `total` gets, before the backward pass."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Weights stay float32 where a model becomes bfloat16 as a whole."""

        def moved(tensor: Tensor) -> Tensor:
            other = fn(tensor)
            if other.dtype != tensor.dtype:
                return tensor.to(other.device)
            return other

        return super()._apply(moved, recurse)

    def index(self, task: str) -> int:
        """The number of a task.

        Raises:
            ValueError: There is no such task.
        """
        if task in self.names:
            return self.names.index(task)
        message = f"task {task!r}: expected one of {', '.join(self.names)}"
        near = difflib.get_close_matches(task, self.names, 1)
        if near:
            message += f"; did you mean {near[0]!r}?"
        raise ValueError(message)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses of tasks that share their inputs.

        Args:
            losses: Task -> its mean loss, a scalar. A task that isn't in this batch is left out.

        Raises:
            ValueError: No loss, or an unknown task.
        """
        if not losses:
            raise ValueError("losses: found none; expected that of one task or more")
        stacked = torch.stack([loss.reshape(()) for loss in losses.values()])
        tasks = torch.tensor([self.index(task) for task in losses])
        self.add_rows(stacked.detach(), tasks)
        if self.on_losses is not None:
            self.on_losses(losses)
        index = tasks.to(self.weights.device, non_blocking=True)
        weighted = self.weights[index] * stacked
        return weighted.sum()

    def add_rows(self, losses: Tensor, tasks: Tensor) -> None:
        """Add the losses of samples, before their weights, to the sums of their tasks.

        Args:
            losses: Tensor of shape [samples], detached.
            tasks: Tensor of shape [samples], int64, none of them -1.
        """
        index = tasks.to(losses.device, non_blocking=True)
        zeros = torch.zeros_like(self.weights)
        ones = torch.ones_like(losses, dtype=zeros.dtype)
        sums = zeros.index_add(0, index, losses.to(zeros.dtype))
        counts = zeros.index_add(0, index, ones)
        self.add(sums, counts)

    def add(self, sums: Tensor, counts: Tensor) -> None:
        """Add the sums of losses, before the tasks' weights, and how much each is the sum of.

        Args:
            sums: Tensor of shape [tasks], detached.
            counts: Tensor of shape [tasks].
        """
        if self._added is not None:
            earlier_sums, earlier_counts = self._added
            sums = earlier_sums + sums
            counts = earlier_counts + counts
        self._added = (sums, counts)

    def take(self) -> tuple[Tensor, Tensor]:
        """Sums and counts since the last call."""
        added = self._added
        self._added = None
        if added is None:
            return torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        return added


def task_weights_of(module: nn.Module) -> TaskWeights:
    """The only `TaskWeights` of a module.

    Raises:
        ValueError: It has none, or several.
    """
    found = [child for child in module.modules() if isinstance(child, TaskWeights)]
    if len(found) != 1:
        raise ValueError(
            f"{type(module).__name__}: found {len(found)} TaskWeights; expected one among its submodules, as "
            "in self.tasks = TaskWeights(['caption', 'vqa'])"
        )
    return found[0]


class InitialLosses:
    """L(0) of each task: the mean of its first losses, since a single one is noisy.

    Args:
        tasks: The number of tasks.
        steps: The number of losses that the mean is of.
        device: Where the losses are.

    >>> initial = InitialLosses(2, steps=2)
    >>> for losses in ([4.0, 1.0], [2.0, 0.0], [0.1, 0.1]):
    ...     initial.add(torch.tensor(losses), seen=torch.tensor(losses) > 0)
    >>> initial.mean(), initial.known
    (tensor([3.0000, 0.5500]), tensor([True, True]))
    """

    def __init__(self, tasks: int, steps: int, device: torch.device | str = "cpu") -> None:
        self.steps = steps
        self._sums = torch.zeros(tasks, device=device)
        self._counts = torch.zeros(tasks, device=device)

    def add(self, losses: Tensor, seen: Tensor) -> None:
        """Add the losses of a step, as long as they are first ones.

        Args:
            losses: Tensor of shape [tasks]; those that aren't finite don't count.
            seen: Tensor of shape [tasks], bool: which tasks the step had.
        """
        first = seen & (self._counts < self.steps) & losses.isfinite()
        self._sums += torch.where(first, losses, 0)
        self._counts += first

    def mean(self) -> Tensor:
        """L(0), NaN where a task hasn't been seen; shape [tasks]."""
        return self._sums / self._counts

    @property
    def known(self) -> Tensor:
        """Which tasks have an L(0) above 0; shape [tasks], bool."""
        return (self._counts > 0) & (self._sums > 0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self._sums.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        device = self._sums.device
        self._sums = state["sums"].to(device).clone()
        self._counts = state["counts"].to(device).clone()
