"""Finds NaN and infinity before they reach the weights, reports where they come from, and continues."""

from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.finite_state import warn_if_not_finite
from lightning_vlm_callbacks.nonfinite_guard.batches import keep_structure
from lightning_vlm_callbacks.nonfinite_guard.detection import Event, MicroBatch, bad_gradients, find_bad
from lightning_vlm_callbacks.nonfinite_guard.report import explain
from lightning_vlm_callbacks.nonfinite_guard.sharded import check_sharded
from lightning_vlm_callbacks.nonfinite_guard.state import Counts, KeptBuffers, Snapshots
from lightning_vlm_callbacks.random_states import random_state
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_plain_optimizers,
    require_single_closure,
    several_closures,
)
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import loss_scaler, run_folder

__all__ = ["NonFiniteError", "NonFiniteGuard"]

MAX_REPORTS = 3
"""So many events have a line and a report; later ones are only counted."""
SNAPSHOTS = 2
"""Copies that `rollback` keeps. It goes back to the oldest: what led to a bad step may be in the newest."""


class NonFiniteError(MisconfigurationException):
    """NaN or infinity again and again, or once with `on_nonfinite: stop`. A command line that shows
    configuration errors in one line shows this too."""


class NonFiniteGuard(Callback):
    """Skips the updates of steps whose loss or gradients hold NaN or infinity, and explains them. So it does
    where float32 can't hold the squares of gradients, which clipping and Adam need.

    Looks after accumulation and unscaling, before clipping (which would spread one NaN over all gradients),
    at the losses of all micro-batches and at the gradients. Ranks agree, so replicas stay equal. A skipped
    step has no gradients at all: weights, momentum and step counts of the optimizer, and buffers such as the
    statistics of BatchNorm, stay bit for bit as they were. Schedules, `global_step` and what a module keeps
    for itself, such as its metrics, continue.

    The micro-batch is then run once more, with the same random numbers, on a copy of the module that shares
    the weights: that names the first module that made NaN or infinity of finite inputs, or the first whose
    gradient went bad, with what went into it. `report.md` says it, with what is wrong in the data and what to
    try first; `bundle.pt` runs it again anywhere (`NonFiniteBundle`). The first three events are written
    about; later ones are only counted.

    Cost: one number read by the host for each optimizer step, and a reduction of two numbers over ranks,
    because all ranks must agree on whether to step. Nothing is read for a micro-batch. References to the
    window's micro-batches are held until its step, so under accumulation they stay on the device together.

    Under float16 a GradScaler skips steps whose scaled gradients overflow, which isn't an anomaly; one that
    shrinks 10 times within 100 steps is reported, once. A compiled module is reported as one module.

    Going back and skipping batches is PaLM's remedy (https://arxiv.org/abs/2204.02311, section 5.1).

    Args:
        on_nonfinite: `skip` skips the update. `rollback` also goes back to an earlier state of weights,
            buffers, optimizer and schedules, and skips the next `snapshot_every_n_steps` updates. `stop`
            skips the update and raises NonFiniteError.
        max_in_a_row: So many bad steps in a row stop the run with NonFiniteError; with `rollback`, so many
            without a new copy in between.
        dirpath: Folder of reports and bundles; None is `nonfinite` in the run's folder, which is
            `save_dir/name/version` of the logger.
        max_bundle_mib: A larger bundle is written without the weights; if its batch alone is larger, there is
            only the report.
        snapshot_every_n_steps: How often `rollback` copies the state to the CPU, which waits for the device.
            It keeps two copies, in memory only, and goes back to the older. Each is as large as the trained
            weights and the state of their optimizer together.

    Raises:
        MisconfigurationException: FSDP1 or DeepSpeed, `rollback` with FSDP2, or manual optimization.
    """

    def __init__(
        self,
        on_nonfinite: Literal["skip", "rollback", "stop"] = "skip",
        max_in_a_row: int = 10,
        dirpath: str | None = None,
        max_bundle_mib: float = 256.0,
        snapshot_every_n_steps: int = 100,
    ) -> None:
        if on_nonfinite not in ("skip", "rollback", "stop"):
            raise MisconfigurationException(
                f"NonFiniteGuard: found on_nonfinite={on_nonfinite!r}; expected skip, rollback or stop"
            )
        for name, value in (
            ("max_in_a_row", max_in_a_row),
            ("snapshot_every_n_steps", snapshot_every_n_steps),
        ):
            if value < 1:
                raise MisconfigurationException(f"NonFiniteGuard: found {name}={value}; expected at least 1")
        self.on_nonfinite = on_nonfinite
        self.max_in_a_row = max_in_a_row
        self.dirpath = dirpath
        self.max_bundle_mib = max_bundle_mib
        self.snapshot_every_n_steps = snapshot_every_n_steps
        self._reset()

    def _reset(self) -> None:
        self._counts = Counts()
        self._window: list[MicroBatch] = []
        self._snapshots: Snapshots | None = None
        self._step_is_good = False
        self._going_back = False

    @property
    def skipped(self) -> int:
        """Steps skipped because of NaN or infinity so far."""
        return self._counts.skipped

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_full_gradients("NonFiniteGuard", trainer, pl_module, needs_whole="")
        check_sharded(trainer, self.on_nonfinite)
        self._folder = run_folder(trainer, self.dirpath)
        if self.dirpath is None:
            self._folder /= "nonfinite"
        self._reset()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_initialized("NonFiniteGuard", pl_module)
        require_single_closure("NonFiniteGuard", trainer.optimizers)
        self._buffers = KeptBuffers(pl_module)
        self._last_step = trainer.global_step
        if self.on_nonfinite == "rollback":
            require_plain_optimizers("NonFiniteGuard(on_nonfinite='rollback')", trainer.optimizers)
            warn_if_beyond(
                trainer,
                "NonFiniteGuard: snapshot_every_n_steps",
                self.snapshot_every_n_steps,
                "it can only go back to the start",
            )
            self._snapshots = Snapshots(SNAPSHOTS, trainer, pl_module)
            self._snapshots.take()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._window:
            self._buffers.keep()
        self._window.append(MicroBatch(keep_structure(batch), batch_idx, random_state(pl_module.device)))

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self._window:  # the step has begun, and a partial update can't be skipped
            raise several_closures("NonFiniteGuard", trainer.optimizers[0])
        self._window[-1].loss = loss.detach()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        window, self._window = self._window, []
        if self._counts.still_out:
            self._counts.still_out -= 1
            self._step_is_good = False
            self._skip_update(trainer, optimizer)
            return
        bad = find_bad(trainer, [micro.loss for micro in window], optimizer)
        self._step_is_good = not any(bad)
        scaler = loss_scaler(trainer)
        if bad.loss:
            self._handle_bad_step(trainer, optimizer, window, "the loss is NaN or infinite")
        elif bad.gradient and scaler is not None:
            self._handle_scale_drop(trainer, scaler.get_scale(), window)
        elif bad.gradient:
            self._handle_bad_step(trainer, optimizer, window, "a gradient is NaN or infinite")
        elif bad.norm:
            what = "the squares of the gradients are too large for float32"
            self._handle_bad_step(trainer, optimizer, window, what)
        elif self._snapshots is None:
            self._counts.in_a_row = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skipped:
            pl_module.log("nonfinite/skipped", float(self.skipped), on_step=True, on_epoch=False)
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self._window = []  # not yet empty if the module itself has skipped the step
        if self._snapshots is None:
            return
        if self._going_back:
            self._going_back = False
            self._counts.still_out = self.snapshot_every_n_steps
            self._snapshots.go_back()
        elif self._last_step % self.snapshot_every_n_steps == 0 and self._step_is_good:
            self._counts.in_a_row = 0
            self._snapshots.take()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        warn_if_not_finite("NonFiniteGuard", trainer)
        if self.skipped:
            rank_zero_warn(
                f"NonFiniteGuard: {self.skipped} of {trainer.global_step} steps were skipped; reports in "
                f"{self._folder}"
            )

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Only the next loss would show what the optimizer itself has made.
        warn_if_not_finite("NonFiniteGuard", trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._window = []
        self._snapshots = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return asdict(self._counts)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        state.pop("lines", None)  # both are in checkpoints of earlier versions
        state.setdefault("drops_reported", state.pop("drops_told", False))
        self._counts = Counts(**state)

    def _skip_update(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Step without gradients, which changes nothing."""
        scaler = loss_scaler(trainer)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # With a fused optimizer the scaler must check the gradients before the step.
            scaler.unscale_(optimizer)
        optimizer.zero_grad()
        trainer.lightning_module.zero_grad()
        self._buffers.restore()

    def _handle_bad_step(
        self, trainer: Trainer, optimizer: Optimizer, window: list[MicroBatch], what: str
    ) -> None:
        """Skip and explain a bad step, then continue or stop."""
        outcome = "The update of this step was skipped on all ranks."
        if self._snapshots is not None:
            self._going_back = True
            outcome = (
                f"The run goes back to an earlier state and skips {self.snapshot_every_n_steps} updates."
            )
        event = Event(what, outcome, window, bad_gradients(trainer.lightning_module))
        self._skip_update(trainer, optimizer)
        self._counts.skipped += 1
        self._counts.in_a_row += 1
        line = self._explain(trainer, event)
        record_event(trainer, "skipped", line)
        if self.on_nonfinite == "stop":
            raise NonFiniteError(f"{line}. Stopped, as on_nonfinite is stop")
        if self._counts.in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"{line}. Stopped after {self._counts.in_a_row} such steps in a row (max_in_a_row); reports "
                f"are in {self._folder}"
            )
        self._warn(f"{line}. {outcome}")

    def _handle_scale_drop(self, trainer: Trainer, scale: float, window: list[MicroBatch]) -> None:
        """Scaled gradients overflowed, so the scaler skips the step. Only many of these are reported."""
        shrank = self._counts.add_drop(trainer.global_step, scale)
        if not shrank:
            return
        what = f"the loss scale, now {scale:g}, {shrank}"
        outcome = "The GradScaler skipped these steps."
        record_event(trainer, "anomaly", what)
        event = Event(what, outcome, window, bad_gradients(trainer.lightning_module))
        self._warn(f"{self._explain(trainer, event)}. {outcome}")

    def _explain(self, trainer: Trainer, event: Event) -> str:
        """What was seen, as a line; of the first events also where it began, and the name of a report."""
        self._counts.explained += 1
        report_to = self._folder if self._counts.explained <= MAX_REPORTS else None
        return explain(trainer, event, report_to, self.max_bundle_mib)

    def _warn(self, line: str) -> None:
        if self._counts.explained == MAX_REPORTS:
            line += " Later ones are only counted."
        if self._counts.explained <= MAX_REPORTS:
            rank_zero_warn(line)
