"""The gradient of one linear layer's weight, of each task alone, over a whole optimizer step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_vlm_callbacks.ddp import sum_over_ranks
from lightning_vlm_callbacks.row_gradients import RowGradients
from lightning_vlm_callbacks.task_weights import TaskWeights

__all__ = ["StepGradients", "TaskGradients"]


class StepGradients(NamedTuple):
    """What was measured in a step, over all its micro-batches and ranks.

    Args:
        matrices: Tensor of shape [tasks, out, in], at least float32: the part of the weight's gradient that
            comes from each task, weighted as in the loss.
        norms: Tensor of shape [tasks]: the norms of the matrices.
        sums: Tensor of shape [tasks]: sums of losses before the tasks' weights.
        counts: Tensor of shape [tasks]: how many losses each sum has.
    """

    matrices: Tensor
    norms: Tensor
    sums: Tensor
    counts: Tensor

    def cosines(self) -> Tensor:
        """Cosines between the gradients of each two tasks, shape [tasks, tasks].

        Below 0 two tasks are in conflict. The cosine is NaN where one of them has no gradient.
        """
        flat = self.matrices.flatten(1)
        return flat @ flat.T / torch.outer(self.norms, self.norms)


class TaskGradients:
    """Collects per-task gradients of a layer `Y = X Wᵀ` in the micro-batches of one step.

    If the module sets `TaskWeights.rows`, they come from the step's one ordinary backward pass
    (`RowGradients`), at the cost of that layer's own weight gradient. It is exact if no row, or no sample
    that is packed into one, is changed by those of another task. If the module calls `TaskWeights.total`,
    each task's loss is differentiated alone, which takes a backward pass for each task, and W must train.

    Over micro-batches and ranks matrices are summed, never norms.

    Args:
        layer: A linear layer: it has `in_features` and `out_features`, and is called as a module.
        name: Its name, for messages.
        tasks: The tasks.

    Raises:
        MisconfigurationException: The layer isn't linear, or its weights are complex.
    """

    def __init__(self, layer: nn.Module, name: str, tasks: TaskWeights) -> None:
        sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
        if not all(isinstance(size, int) for size in sizes):
            raise MisconfigurationException(f"layer {name}: found {type(layer).__name__}; expected a Linear")
        if any(parameter.is_complex() for parameter in layer.parameters()):
            raise MisconfigurationException(f"layer {name}: found complex weights; expected real ones")
        self.layer = layer
        self.name = name
        self.tasks = tasks
        self.calls = 0
        """How often the layer had a part in the loss in this step, by either way."""
        self._watch: RowGradients | None = None
        self._matrices: Tensor | None = None
        self._scale: Tensor | None = None
        self._accumulate = 1

    # A step

    def begin(self, scale: Tensor | None = None, accumulate: int = 1) -> None:
        """Begin to collect.

        Args:
            scale: What a GradScaler multiplies the loss by; None is 1.
            accumulate: What the Trainer divides each micro-batch's loss by.
        """
        self.stop()
        self.calls = 0
        self._matrices = None
        self._scale = scale
        self._accumulate = accumulate
        self.tasks.take()  # drops losses of steps that weren't measured
        self.tasks.on_losses = self._differentiate
        self._watch = RowGradients(self.layer, self._split_rows, lambda: self.tasks.rows)

    def stop(self) -> None:
        """Stop collecting, and leave layer and tasks as they were."""
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
            self.tasks.on_losses = None

    @property
    def open(self) -> bool:
        """Whether a step is being collected."""
        return self._watch is not None

    def finish(self, world: int) -> StepGradients:
        """End the step. With several ranks all must call this; the answer is the same on each.

        Args:
            world: The number of ranks; gradients are averages over them, as DDP's are.
        """
        self.stop()
        matrices = self._new_matrices() if self._matrices is None else self._matrices
        sums, counts = self.tasks.take()
        if world > 1:
            matrices, sums, counts = sum_over_ranks(matrices, sums, counts)
            matrices.div_(world)
        if self._scale is not None:
            matrices.div_(self._scale)
        # This needs less memory than squaring the matrices, which may be large.
        norms = torch.linalg.vector_norm(matrices, dim=(1, 2))
        return StepGradients(matrices, norms, sums, counts)

    # Micro-batches

    def _split_rows(self, x: Tensor, gradient: Tensor, rows: Tensor | None) -> None:
        """Add the gradients of a call of the layer whose rows belong to tasks."""
        if rows is None:  # the tasks share their inputs, so `_differentiate` gets their losses
            return
        self._check_rows(x, rows)
        x = x.flatten(0, rows.ndim - 1)  # [rows, ...] or [tokens, ...]
        gradient = gradient.flatten(0, rows.ndim - 1)
        for task, stretches in _stretches(rows).items():
            if task >= 0:
                self._add(task, _weight_gradient(_joined(x, stretches), _joined(gradient, stretches)))
        self.calls += 1

    def _differentiate(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of the losses of tasks that share their inputs."""
        weight = self.layer.weight
        if not isinstance(weight, Tensor) or not weight.requires_grad:
            raise MisconfigurationException(
                f"layer {self.name}: found a frozen weight, for which the losses of tasks that share inputs "
                "can't be differentiated; expected one that trains"
            )
        for name, loss in losses.items():
            if not loss.requires_grad:
                continue
            scaled = loss if self._scale is None else loss * self._scale
            (gradient,) = torch.autograd.grad(scaled, weight, retain_graph=True, allow_unused=True)
            if gradient is None:
                continue
            task = self.tasks.index(name)
            share = self.tasks.weights[task] / self._accumulate
            self._add(task, share * gradient.to(torch.promote_types(gradient.dtype, torch.float32)))
            self.calls += 1

    def _add(self, task: int, matrix: Tensor) -> None:
        if self._matrices is None:
            self._matrices = self._new_matrices()
        self._matrices[task] += matrix

    def _new_matrices(self) -> Tensor:
        # The layer's shape is read in each step, because a LoRA layer's rank may change.
        layer: Any = self.layer
        shape = (len(self.tasks.names), layer.out_features, layer.in_features)
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        return torch.zeros(shape, dtype=dtype, device=self.tasks.weights.device)

    def _check_rows(self, x: Tensor, rows: Tensor) -> None:
        if rows.ndim not in (1, 2) or x.ndim <= rows.ndim or x.shape[: rows.ndim] != rows.shape:
            each = "a token" if rows.ndim == 2 else "a row"
            raise MisconfigurationException(
                f"layer {self.name}: found an input of shape {list(x.shape)} and tasks of rows "
                f"{list(rows.shape)}; expected a layer whose input has {each} for each, such as one of the "
                "language model"
            )


def _stretches(rows: Tensor) -> dict[int, list[slice]]:
    """Where the rows or tokens of each task lie, as few slices as there are: no index has to go to a device.

    Args:
        rows: As `TaskWeights.rows`.

    >>> _stretches(torch.tensor([[1, 1, 0, 1]]))
    {1: [slice(0, 2, None), slice(3, 4, None)], 0: [slice(2, 3, None)]}
    """
    found: dict[int, list[slice]] = {}
    tasks, lengths = rows.flatten().unique_consecutive(return_counts=True)
    start = 0
    for task, length in zip(tasks.tolist(), lengths.tolist(), strict=True):
        found.setdefault(task, []).append(slice(start, start + length))
        start += length
    return found


def _joined(values: Tensor, stretches: Sequence[slice]) -> Tensor:
    if len(stretches) == 1:
        return values[stretches[0]]
    return torch.cat([values[stretch] for stretch in stretches])


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """dYᵀX, at least in float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return gradient.flatten(0, -2).to(wide).T @ x.flatten(0, -2).to(wide)
