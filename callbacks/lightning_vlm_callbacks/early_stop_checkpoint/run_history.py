"""What a run has logged, step by step: one small CSV, and a picture of it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_vlm_callbacks.curves import Curve, save_curves
from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.runs import logs_at

__all__ = ["Recorder", "RunHistory", "gradient_norm"]


class RunHistory:
    """Rows of numbers by step. On a device they stay there until they are saved.

    Args:
        names: Globs of the metrics to keep.

    >>> history = RunHistory(["*loss*"])
    >>> history.add(1, 0, {"lr": 0.1}, {"train/loss": torch.tensor(2.5), "accuracy": torch.tensor(0.5)})
    >>> print(history.text())
    step,epoch,lr,train/loss
    1,0,0.1,2.5
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._rows: dict[int, dict[str, float | Tensor]] = {}
        self._last: dict[str, Tensor] = {}

    def add(
        self,
        step: int,
        epoch: int,
        numbers: Mapping[str, float | Tensor],
        metrics: Mapping[str, Tensor],
    ) -> None:
        """Add to the row of a step.

        Args:
            numbers: Always kept.
            metrics: All there are: kept are those with the right names that are new since the last call, for
                Lightning keeps showing metrics that were logged long ago.
        """
        new = {
            name: value.detach()
            for name, value in metrics.items()
            if any(fnmatchcase(name, pattern) for pattern in self.names) and not self._is_last(name, value)
        }
        self._last.update(new)
        if new or numbers:
            self._rows.setdefault(step, {"epoch": epoch}).update({**numbers, **new})

    def add_old(self, metrics: Mapping[str, Tensor]) -> None:
        """Metrics that are shown, but belong to no row to come."""
        self._last.update(metrics)

    def _is_last(self, name: str, value: Tensor) -> bool:
        """The last one is kept alive so that its address stays unique."""
        return name in self._last and self._last[name].data_ptr() == value.data_ptr()

    def text(self) -> str:
        """The rows as CSV. Here the host waits for devices: once for each."""
        self._settle()
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        columns.sort(key=lambda name: (name != "epoch", not name.startswith("lr")))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *columns])
        for step, row in sorted(self._rows.items()):
            writer.writerow([step, *(f"{row[name]:.9g}" if name in row else "" for name in columns)])
        return out.getvalue().rstrip("\n")

    def load(self, file: Path, last: int) -> None:
        """Read the rows of a run up to a step. A run resumed there writes the later rows again."""
        if not file.is_file():
            return
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                step = int(row.pop("step"))
                if step <= last:
                    self._rows[step] = {name: float(value) for name, value in row.items() if value}

    def draw(self, file: Path, monitor: str | None, marks: Mapping[str, float]) -> None:
        """Losses and what is monitored, learning rates and gradient norms, as far as there are any."""
        self._settle()
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        norms = [name for name in names if "norm" in name]
        rates = [name for name in names if name.startswith("lr")]
        losses = [name for name in names if "loss" in name and name not in norms]
        panels = {
            "loss": losses,
            f"monitored: {monitor}": [monitor] if monitor in names and monitor not in losses else [],
            "learning rate": rates,
            "norm of the gradient": norms,
        }
        curves = {title: {name: self._curve(name) for name in some} for title, some in panels.items() if some}
        positive = any(0 < value < math.inf for name in norms for value in self._curve(name)[1])
        if curves:
            save_curves(file, curves, marks, log=["norm of the gradient"] if positive else [])

    def _curve(self, name: str) -> Curve:
        points = [(step, float(row[name])) for step, row in sorted(self._rows.items()) if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def _settle(self) -> None:
        places: dict[torch.device, list[tuple[dict[str, float | Tensor], str, Tensor]]] = {}
        for row in self._rows.values():
            for name, value in row.items():
                if isinstance(value, Tensor):
                    places.setdefault(value.device, []).append((row, name, value))
        for some in places.values():
            values = torch.stack([value.float().reshape(()) for *_, value in some]).tolist()
            for (row, name, _), value in zip(some, values, strict=True):
                row[name] = value


class Recorder:
    """Takes learning rates, gradient norms and metrics of a run for a `RunHistory`.

    Args:
        names: As for `RunHistory`; None records nothing.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names
        self.history = RunHistory(names or [])
        self._numbers: dict[str, float | Tensor] = {}

    def clear(self) -> None:
        """Begin with no rows."""
        self.history = RunHistory(self._names or [])

    def on_train_batch_start(self, trainer: Trainer) -> None:
        """Read the learning rates that are in force in the step."""
        if self._is_due(trainer, trainer.global_step + 1):
            self._numbers = dict(rates_in_force(trainer.optimizers))

    def on_before_optimizer_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Measure the gradient, before it is clipped."""
        if self._is_due(trainer, trainer.global_step + 1):
            number = trainer.optimizers.index(optimizer)
            name = "grad_norm" if len(trainer.optimizers) == 1 else f"grad_norm/{number}"
            if name in self._numbers:
                return  # LBFGS and SAM compute another gradient within the step
            if (norm := gradient_norm(optimizer)) is not None:
                self._numbers[name] = norm

    def on_step_end(self, trainer: Trainer) -> None:
        """Record the step that was just made."""
        if self._is_due(trainer, trainer.global_step):
            self.record(trainer, self._numbers)

    def record(self, trainer: Trainer, numbers: Mapping[str, float | Tensor] | None = None) -> None:
        """Record the metrics that are new. All ranks call it, as they may have to agree on the metrics."""
        metrics = trainer.callback_metrics
        if self._names is not None and trainer.is_global_zero:
            self.history.add(trainer.global_step, trainer.current_epoch, numbers or {}, metrics)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        return self._names is not None and logs_at(trainer, step)


def gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """The 2-norm of all gradients of an optimizer; None if it has none. The host doesn't wait."""
    gradients = [
        one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None
    ]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm([_norm_values(gradient) for gradient in gradients])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _norm_values(gradient: Tensor) -> Tensor:
    """Values that have the 2-norm of a gradient."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()  # repeated indices are summed
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    return gradient.float() if gradient.dtype == torch.float16 else gradient  # its squares would overflow
