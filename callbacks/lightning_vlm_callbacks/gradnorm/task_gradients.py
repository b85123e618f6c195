"""The gradient of one linear layer's weight, of each task alone, over a whole optimizer step."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_vlm_callbacks.row_gradients import RowGradients
from lightning_vlm_callbacks.task_weights import TaskWeights

__all__ = ["StepGradients", "TaskGradients"]


class StepGradients(NamedTuple):
    """What a step gave, over all its micro-batches and ranks.

    Args:
        matrices: Tensor of shape [tasks, out, in], at least float32: the part of the weight's gradient that
            comes from each task, weighted as in the loss. With a sketch `in` is the sketch's width.
        norms: Tensor of shape [tasks]: those of the matrices.
        squares: Tensor of shape [tasks]: an estimate of the squared norm of each matrix's expectation, NaN
            where a task was in one micro-batch only. Without noise the matrices' own squared norm.
        sums: Tensor of shape [tasks]: losses before the tasks' weights.
        counts: Tensor of shape [tasks]: what the sums are sums of.
    """

    matrices: Tensor
    norms: Tensor
    squares: Tensor
    sums: Tensor
    counts: Tensor

    def cosines(self) -> Tensor:
        """Of the gradients of each two tasks: below 0 they are in conflict, NaN where one has none.

        Shape [tasks, tasks].
        """
        flat = self.matrices.flatten(1)
        return flat @ flat.T / torch.outer(self.norms, self.norms)


class TaskGradients:
    """Collects per-task gradients of a layer `Y = X Wᵀ` in the micro-batches of one step.

    If the module sets `TaskWeights.rows`, they come from the step's one ordinary backward (`RowGradients`),
    at the cost of that layer's own weight gradient. It is exact if no row of one task is changed by rows of
    another. If it calls `TaskWeights.total`, each task's loss is differentiated alone, which takes a
    backward pass for each task, and W must train.

    Over micro-batches and ranks matrices are summed, never norms.

    Args:
        layer: A linear layer: it has `in_features` and `out_features`, and is called as a module.
        name: Its name, for messages.
        tasks: The tasks.
        packed: A row of `rows` may hold tokens of several tasks, which do not see each other.
        sketch: Keep `G R` instead of G, R a fixed random matrix of shape [in, sketch] with E[R Rᵀ] = 1, for
            layers whose [tasks, out, in] is too large. A norm is then off by about 4% at 16, 1% at 256.
    """

    def __init__(
        self, layer: nn.Module, name: str, tasks: TaskWeights, packed: bool = False, sketch: int | None = None
    ) -> None:
        self.layer, self.name, self.tasks, self.packed = layer, name, tasks, packed
        wide, out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        if not isinstance(wide, int) or not isinstance(out, int):
            raise MisconfigurationException(f"layer {name}: found {type(layer).__name__}; expected a Linear")
        if any(parameter.is_complex() for parameter in layer.parameters()):
            raise MisconfigurationException(f"layer {name}: found complex weights; expected real ones")
        self._columns = sketch
        self._sketch: Tensor | None = None
        self._watch: RowGradients | None = None
        self._handles: list[Any] = []
        self.calls = 0
        """How often the layer was met in this step, by either way."""

    # A step

    def begin(self, scale: Tensor | None = None, accumulate: int = 1) -> None:
        """Begin to collect.

        Args:
            scale: What a GradScaler multiplies the loss by; None is 1.
            accumulate: What the Trainer divides each micro-batch's loss by.
        """
        self.stop()
        tasks = self.tasks
        self._matrices: Tensor | None = None
        # This is read at each step, because a LoRA layer's rank may change.
        wide, out = int(self.layer.in_features), int(self.layer.out_features)  # type: ignore[arg-type]
        if self._columns is None or self._columns >= wide:
            self._sketch = None
        elif self._sketch is None or len(self._sketch) != wide:
            sketch = torch.randn(wide, self._columns, generator=torch.Generator().manual_seed(0))
            self._sketch = (sketch / math.sqrt(self._columns)).to(tasks.weights.device)
        self._shape = (len(tasks.names), out, wide if self._sketch is None else self._sketch.shape[1])
        # Of each task: Σ‖G_k‖², Σn_k, Σn_k² over micro-batches k of n_k rows.
        self._parts = torch.zeros(3, len(tasks.names), device=tasks.weights.device)
        self._scale, self._accumulate, self.calls = scale, accumulate, 0
        tasks.take()
        tasks.on_losses = self._losses
        self._watch = RowGradients(self.layer, self._rows)
        self._handles = [self.layer.register_forward_pre_hook(self._tag)]

    def stop(self) -> None:
        """Stop collecting, and leave layer and tasks as they were."""
        if self._watch is not None:
            self._watch.remove()
            self._watch, self.tasks.on_losses = None, None
        while self._handles:
            self._handles.pop().remove()

    @property
    def open(self) -> bool:
        """Whether a step is being collected."""
        return self._watch is not None

    def finish(self, world: int) -> StepGradients:
        """End the step. With several ranks all must come here; the answer is the same on each.

        Args:
            world: The number of ranks; gradients are averages over them, as DDP's are.
        """
        self.stop()
        matrices = self._matrices
        if matrices is None:
            matrices = torch.zeros(self._shape, device=self.tasks.weights.device)
        parts, (sums, counts) = self._parts, self.tasks.take()
        if world > 1:
            pieces = (matrices, parts, sums, counts)
            flat = torch.cat([one.flatten().to(matrices.dtype) for one in pieces])
            torch.distributed.all_reduce(flat)
            cut = flat.split([one.numel() for one in pieces])
            matrices, parts, sums, counts = (
                one.view_as(piece) for one, piece in zip(cut, pieces, strict=True)
            )
            matrices.div_(world)
            parts = torch.cat((parts[:1] / world**2, parts[1:]))
        if self._scale is not None:
            matrices.div_(self._scale)
            parts = torch.cat((parts[:1] / self._scale**2, parts[1:]))
        each, rows, rows_squared = parts
        norms = _norms(matrices)
        squares = (norms**2 - each) * rows**2 / (rows**2 - rows_squared)
        squares = torch.where(rows**2 > rows_squared, squares, torch.nan)
        return StepGradients(matrices, norms, squares, sums, counts)

    # Micro-batches

    def _tag(self, layer: nn.Module, args: Any) -> None:
        assert self._watch is not None
        self._watch.tag = self.tasks.rows

    def _rows(self, x: Tensor, gradient: Tensor, rows: Tensor | None) -> None:
        if rows is None:  # the losses come by `total`
            return
        self._check_rows(x, rows)
        if rows.ndim == 2:
            x, gradient, rows = x.flatten(0, 1), gradient.flatten(0, 1), rows.flatten()
        numbers = rows.unique().tolist()
        for task in numbers:
            if task < 0:
                continue
            mine_x, mine_gradient = x, gradient
            if len(numbers) > 1:
                (mine,) = (rows == task).nonzero(as_tuple=True)
                mine = mine.to(x.device, non_blocking=True)
                mine_x, mine_gradient = x.index_select(0, mine), gradient.index_select(0, mine)
            self._add(task, self._product(mine_gradient, mine_x), int((rows == task).sum()))
        self.calls += 1

    def _product(self, gradient: Tensor, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            x, gradient = x.flatten(0, -2).to(wide), gradient.flatten(0, -2).to(wide)
            return gradient.T @ (x if self._sketch is None else x @ self._sketch.to(wide))

    def _losses(self, losses: Mapping[str, Tensor]) -> None:
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
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            wide = wide if self._sketch is None else wide @ self._sketch.to(wide.dtype)
            self._add(task, self.tasks.weights[task] / self._accumulate * wide, 1)
            self.calls += 1

    def _add(self, task: int, matrix: Tensor, rows: int) -> None:
        if self._matrices is None:
            self._matrices = matrix.new_zeros(self._shape)
        self._matrices[task] += matrix
        self._parts[0, task] += _norms(matrix[None])[0] ** 2
        self._parts[1, task] += rows
        self._parts[2, task] += rows**2

    def _check_rows(self, x: Tensor, rows: Tensor) -> None:
        if x.ndim < 2 or rows.ndim not in (1, 2) or x.shape[: rows.ndim] != rows.shape or x.ndim <= rows.ndim:
            raise MisconfigurationException(
                f"layer {self.name}: found an input of shape {list(x.shape)} and tasks of rows "
                f"{list(rows.shape)}; expected a layer whose input has a row for each, such as one of the "
                "language model"
            )
        if rows.ndim == 2 and not self.packed:
            low, high = torch.where(rows < 0, rows.max(), rows).amin(1), rows.amax(1)
            if bool((low < high).any()):  # low is above high in a row of only -1
                raise MisconfigurationException(
                    "rows: found tokens of several tasks in one row, where tokens usually see each other and "
                    "task gradients can't be separated; set packed=True if attention is block-diagonal"
                )


def _norms(matrices: Tensor) -> Tensor:
    """Of n matrices, shape [n]. Squares and their sum would make a copy of matrices that may be large."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2))
