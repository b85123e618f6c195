"""Records what a run logs as it goes, and draws it at the end."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.run_report.draw import draw_report
from lightning_vlm_callbacks.run_report.gradient_norm import gradient_norm
from lightning_vlm_callbacks.run_report.record import Record
from lightning_vlm_callbacks.run_report.report_logger import ReportLogger
from lightning_vlm_callbacks.run_report.steps import logged_step, steps_made
from lightning_vlm_callbacks.runs import logs_at, run_folder
from lightning_vlm_callbacks.trackers import log_picture
from lightning_vlm_callbacks.whole_files import refusal

__all__ = ["RunReport", "record_event"]

FILE = "report.jsonl"


def record_event(trainer: Trainer, kind: str, text: str, step: int | None = None, **values: Any) -> None:
    """Tell the run's report, if it has one, that something happened. Any callback or module may call it.

    Args:
        trainer: Whose run it is.
        kind: One word, such as `stage`, `skipped` or `anomaly`; events of a kind are marked alike.
        text: A short sentence for people.
        step: When it was; None is now.
        values: Numbers, texts, lists or dictionaries that belong to it.

    Example::

        record_event(trainer, "skipped", "the loss is NaN", rank=1)
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunReport):
            callback.add_event(trainer, kind, text, step, **values)


class RunReport(Callback):
    """Keeps a record of everything that is logged, and makes a page with pictures of it at the end.

    Beside the run it writes `report.jsonl`, a line for each step that the Trainer logs and for each event,
    flushed at once, so that a killed run keeps what it has. When the run ends, or is interrupted, it draws
    `report.html`, one file without anything external, and with matplotlib PNGs in the folder `report`, which
    loggers that show pictures get too (W&B, TensorBoard, MLflow). They show losses, learning rates by the
    names of their groups, norms of gradients, weights of tasks and tokens, ranks and whatever else was
    logged, with stages as bands and events as marks.

    What is recorded is what any logger of the Trainer gets, with the same steps, as well as the learning
    rates in force (`rates_in_force`), the norm of the gradient before clipping, and what is passed to
    `record_event`. So it costs little more than another logger would, and nothing at steps that the Trainer
    doesn't log. It needs no logger.

    A resumed run continues the record of the run before, also in another folder: what had been recorded after
    the checkpoint doesn't count any more.

    Args:
        dirpath: Where the files go; None is the run's folder (`save_dir/name/version` of the logger, or the
            Trainer's `default_root_dir` without one).

    Raises:
        MisconfigurationException: As the run begins, the folder can't be written to, or another run writes
            into it. Later, as on a full disk, a warning says so and the run goes on.

    Example::

        trainer = Trainer(callbacks=[RunReport()])
    """

    def __init__(self, dirpath: str | None = None) -> None:
        super().__init__()
        self.dirpath = dirpath
        self.page: Path | None = None
        """The page of the last fit, from its end on; None if there was nothing to draw."""
        self.announce = True
        """Whether to say where the page is; the command's summary does it for itself."""
        self._run: str | None = None
        """What names the run in its record. It stays the same when the run is resumed."""
        self._file: Path | None = None
        self._loaded: dict[str, str] | None = None
        self._record: Record | None = None
        self._is_refused = False
        """Whether a line couldn't be written in this fit."""
        self._measured: dict[str, float | Tensor] = {}
        """Learning rates and gradient norm of the step that was logged last, until they are read."""
        self._measured_step = -1

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._loaded = self.page = None
            self._is_refused = False
            self._folder = run_folder(trainer, self.dirpath)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's tuner may have run since `on_fit_start`, and drops all loggers but the first.
        self._attach(trainer)
        with self._going_on():
            self._open(trainer)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = logged_step(trainer)
        if step == self._measured_step:  # another micro-batch of the step
            return
        self._write_measured()
        if self._is_attached(trainer) and logs_at(trainer, step + 1):
            self._measured_step = step
            self._measure_rates(trainer)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # At the batch's start a later callback may have begun a stage, which changes the rates.
        if self._measured_step == logged_step(trainer):
            self._measure_rates(trainer)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        name = "grad_norm"
        if len(trainer.optimizers) > 1:
            name = f"grad_norm/{trainer.optimizers.index(optimizer)}"
        # LBFGS and SAM compute several gradients in a step, of which the first counts.
        if self._measured_step == logged_step(trainer) and name not in self._measured:
            norm = gradient_norm(optimizer)  # on all ranks, as gradients may be spread over them
            if norm is not None:
                self._measured[name] = norm

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_measured()
        for stopper in trainer.early_stopping_callbacks:
            if stopper.stopped_epoch:
                reason = stopper.stopping_reason_message or f"{stopper.monitor} no longer improved"
                self.add_event(trainer, "stopped", f"EarlyStopping: {reason}")
        self.add_event(trainer, "ended", f"the run ended after {trainer.global_step:,} steps")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write_measured()
        first_line = next(iter(str(exception).splitlines()), "")
        what = f"{type(exception).__name__}: {first_line}".removesuffix(": ")
        self.add_event(trainer, "interrupted", what)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.finish(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._measured_step < steps_made(trainer):  # a run that is killed and resumed here keeps it
            self._write_measured()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"run": self._run, "file": None if self._file is None else str(self._file)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict if state_dict.get("run") else None

    # The record

    def add_event(
        self, trainer: Trainer, kind: str, text: str, step: int | None = None, **values: Any
    ) -> None:
        """Record an event; see `record_event`."""
        with self._going_on():
            self._open(trainer)
            if self._record is not None:
                self._record.add_event(steps_made(trainer) if step is None else step, kind, text, values)

    def add_metrics(self, trainer: Trainer, values: dict[str, Any], step: int | None) -> None:
        """Record what the Trainer or someone else logs."""
        with self._going_on():
            self._open(trainer)
            if self._record is None:
                return
            epoch = values.get("epoch")
            numbers = {name: value for name, value in values.items() if name != "epoch"}
            shown = None if epoch is None else int(epoch)
            self._record.add_metrics(logged_step(trainer) if step is None else step, numbers, shown)

    def finish(self, trainer: Trainer) -> None:
        """Stop recording, and draw the report."""
        trainer.loggers = [logger for logger in trainer.loggers if not isinstance(logger, ReportLogger)]
        if self._record is not None:
            self._record.close()
            self._record = None
            files = draw_report(self._folder / FILE, announce=self.announce)
            self.page = files[0] if files else None
            for picture in files[1:]:
                log_picture(trainer, f"pictures/{picture.stem}", picture)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What can't be recorded is left out, and said once: it is no reason for a run to end."""
        try:
            yield
        except OSError as error:
            if not self._is_refused:
                rank_zero_warn(f"RunReport: {refusal(error)}; the run goes on, but this isn't recorded")
            self._is_refused = True

    def _attach(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run and not self._is_attached(trainer):  # type: ignore[attr-defined]
            trainer.loggers = [*trainer.loggers, ReportLogger(self, trainer)]

    def _is_attached(self, trainer: Trainer) -> bool:
        return any(isinstance(logger, ReportLogger) for logger in trainer.loggers)

    def _open(self, trainer: Trainer) -> None:
        """Begin to write. It is the first call during a fit that does so, when the step is known."""
        if self._record is not None or not trainer.is_global_zero or not self._is_attached(trainer):
            return
        before, self._file = self._file, self._folder / FILE
        step = steps_made(trainer)
        if self._loaded is not None:
            self._run = self._loaded["run"]
            before = _find(trainer, Path(self._loaded["file"]))
        elif step == 0:
            self._run = None
        self._record = Record(self._file)
        if self._run is None:
            self._run = uuid.uuid4().hex[:8]
            kind, text = "started", "the run started"
            if step > 0:
                text = f"the record starts at step {step:,}, as the run before it had none"
        else:
            kind, text = "resumed", f"the run was resumed at step {step:,}"
            if before is None:
                text += "; its record from before wasn't found"
                rank_zero_warn(
                    f"RunReport: the record of steps before {step} is neither where it was nor beside the "
                    "checkpoint, so the report begins here; to have all of it, keep report.jsonl"
                )
            elif before != self._file:
                self._record.copy(before)
        self._record.add_event(step, kind, text, {"run": self._run})

    def _measure_rates(self, trainer: Trainer) -> None:
        for name, rate in rates_in_force(trainer.optimizers).items():
            self._measured[name] = rate.clone() if isinstance(rate, Tensor) else rate

    def _write_measured(self) -> None:
        """Record what was measured in the last step that was logged. The host has waited for it already."""
        if self._measured and self._record is not None:
            with self._going_on():
                self._record.add_metrics(self._measured_step, self._measured)
        self._measured, self._measured_step = {}, -1


def _find(trainer: Trainer, saved: Path) -> Path | None:
    """Where the record of a resumed run is: where the checkpoint says, or near the checkpoint.

    The checkpoint may have been moved together with its run's folder.
    """
    places = [saved]
    if trainer.ckpt_path:
        folder = Path(trainer.ckpt_path).absolute().parent
        places += [folder / FILE, folder.parent / FILE]
    return next((place for place in places if place.is_file()), None)
