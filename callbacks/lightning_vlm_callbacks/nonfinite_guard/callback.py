"""Finds NaN and infinity before they reach the weights, reports where they come from, and continues."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.nonfinite_guard.bundle import keep_structure
from lightning_vlm_callbacks.nonfinite_guard.report import Event, MicroBatch, active_scaler, write_report
from lightning_vlm_callbacks.nonfinite_guard.state import KeptBuffers, Snapshots
from lightning_vlm_callbacks.random_states import random_state
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_lightning,
    require_plain_optimizers,
    require_single_closure,
    several_closures,
)
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.runs import run_folder

__all__ = ["NonFiniteError", "NonFiniteGuard"]

MAX_LINES = 5
"""So many events are reported with a line each; later ones are only counted."""
RECENT = 100
"""Optimizer steps over which reductions of the loss scale are counted."""


class NonFiniteError(MisconfigurationException):
    """NaN or infinity again and again, or once with `on_nonfinite: stop`. A command line that shows
    configuration errors in one line shows this too."""


class NonFiniteGuard(Callback):
    """Leaves out the updates of steps whose loss or gradients hold NaN or infinity, and explains them.

    Looks after accumulation and unscaling, before clipping (which would spread one NaN over all gradients),
    at the losses of all micro-batches and at the gradients. Ranks agree, so replicas stay equal. A skipped
    step has no gradients at all: weights, momentum and step counts of the optimizer, and buffers such as the
    statistics of BatchNorm, stay bit for bit as they were. Schedules, `global_step` and what a module keeps
    for itself, such as its metrics, continue.

    The micro-batch is then run once more, with the same random numbers, on a copy of the module that shares
    the weights: that names the first module that made NaN or infinity of finite inputs, or the first whose
    gradient went bad, with what went into it. `report.md` says it, with what is wrong in the data and what to
    try first; `bundle.pt` runs it again anywhere (`NonFiniteBundle`).

    Cost: one number read by the host for each optimizer step, and a reduction of two numbers over ranks,
    because all ranks must agree on whether to step. Nothing is read for a micro-batch. References to the
    window's micro-batches are held until its step, so under accumulation they stay on the device together.

    Under float16 a GradScaler skips steps whose scaled gradients overflow, which isn't an anomaly; one that
    shrinks again and again is reported, once. A compiled module is reported as one module.

    Going back and leaving out batches is PaLM's remedy (https://arxiv.org/abs/2204.02311, section 5.1).

    Args:
        on_nonfinite: `skip` skips the update. `rollback` also goes back to an earlier state of weights,
            buffers, optimizer and schedules, and leaves out the updates of the next steps. `stop` leaves the
            update out and raises NonFiniteError.
        max_in_a_row: So many bad steps in a row stop the run with NonFiniteError; with `rollback`, so many
            without a new copy in between.
        dirpath: Folder of reports and bundles; None is `nonfinite` in the run's folder, which is
            `save_dir/name/version` of the logger.
        max_bundles: So many events are run again and written about; later ones are only counted.
        max_bundle_mib: A bundle above this leaves out the weights, or all but the report.
        snapshot_every_n_steps: How often `rollback` copies the state to the CPU, which waits for the device.
        snapshots: How many copies it keeps, in memory only; it goes back to the oldest. Each is as large as
            the trained weights and the state of their optimizer together.
        leave_out: How many optimizer steps `rollback` leaves out after going back.
        max_scale_drops: So many reductions of the loss scale within 100 steps are reported.

    Raises:
        MisconfigurationException: A strategy that shards the model, or manual optimization.
    """

    def __init__(
        self,
        on_nonfinite: Literal["skip", "rollback", "stop"] = "skip",
        max_in_a_row: int = 10,
        dirpath: str | None = None,
        max_bundles: int = 3,
        max_bundle_mib: float = 256.0,
        snapshot_every_n_steps: int = 100,
        snapshots: int = 2,
        leave_out: int = 100,
        max_scale_drops: int = 10,
    ) -> None:
        if on_nonfinite not in ("skip", "rollback", "stop"):
            raise MisconfigurationException(
                f"NonFiniteGuard: found on_nonfinite={on_nonfinite!r}; expected skip, rollback or stop"
            )
        least = {"max_in_a_row": max_in_a_row, "snapshots": snapshots, "max_scale_drops": max_scale_drops}
        least["snapshot_every_n_steps"] = snapshot_every_n_steps
        for name, value in least.items():
            if value < 1:
                raise MisconfigurationException(f"NonFiniteGuard: found {name}={value}; expected at least 1")
        self.on_nonfinite, self.max_in_a_row = on_nonfinite, max_in_a_row
        self.dirpath, self.max_bundles, self.max_bundle_mib = dirpath, max_bundles, max_bundle_mib
        self.snapshot_every_n_steps, self.snapshots = snapshot_every_n_steps, snapshots
        self.leave_out = leave_out
        self.max_scale_drops = max_scale_drops
        self._reset()

    def _reset(self) -> None:
        self.skipped = 0
        """Steps left out for NaN or infinity so far."""
        self._in_a_row = self._explained = self._still_out = self._lines = 0
        self._drops: list[int] = []
        self._window: list[MicroBatch] = []
        self._ring: Snapshots | None = None
        self._good = self._going_back = self._drops_told = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_lightning("NonFiniteGuard", trainer)
        if stage != "fit":
            return
        require_full_gradients("NonFiniteGuard", trainer, pl_module)
        self._folder = run_folder(trainer, self.dirpath)
        if self.dirpath is None:
            self._folder /= "nonfinite"
        self._reset()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_initialized("NonFiniteGuard", pl_module)
        require_single_closure("NonFiniteGuard", trainer.optimizers)
        if self.on_nonfinite == "rollback":
            require_plain_optimizers("NonFiniteGuard(on_nonfinite='rollback')", trainer.optimizers)
        self._buffers = KeptBuffers(pl_module)
        self._last_step = trainer.global_step
        if self.on_nonfinite == "rollback":
            self._ring = Snapshots(self.snapshots)
            every, start = self.snapshot_every_n_steps, "it can only go back to the start"
            warn_if_beyond(trainer, "NonFiniteGuard: snapshot_every_n_steps", every, start)
            self._ring.take(trainer.global_step, pl_module, trainer.optimizers[0], _schedulers(trainer))

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
        if self._still_out:
            self._still_out -= 1
            self._good = False
            self._leave_out(trainer, pl_module, optimizer)
            return
        bad_loss, bad_gradient = self._look(trainer, window, optimizer)
        self._good = not bad_loss and not bad_gradient
        if self._good:
            self._in_a_row *= self._ring is not None
        elif not bad_loss and active_scaler(trainer) is not None:
            self._count_drop(trainer, pl_module, window)
        else:
            self._meet(trainer, pl_module, optimizer, window, bad_loss)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skipped:
            pl_module.log("nonfinite/skipped", float(self.skipped), on_step=True, on_epoch=False)
        step, last, self._last_step = trainer.global_step, self._last_step, trainer.global_step
        if step != last:
            self._window = []  # not yet empty if the module itself has left the step out
        if self._ring is None or step == last:
            return
        if self._going_back:
            self._going_back, self._still_out = False, self.leave_out
            self._ring.go_back(pl_module, trainer.optimizers[0], _schedulers(trainer))
        elif step % self.snapshot_every_n_steps == 0 and self._good:
            self._in_a_row = 0
            self._ring.take(step, pl_module, trainer.optimizers[0], _schedulers(trainer))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skipped:
            rank_zero_warn(
                f"NonFiniteGuard: {self.skipped} of {trainer.global_step} steps were left out; reports in "
                f"{self._folder}"
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._window, self._ring = [], None

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("skipped", "_in_a_row", "_explained", "_still_out", "_lines", "_drops", "_drops_told")
        return {name.strip("_"): getattr(self, name) for name in names}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name if name == "skipped" else f"_{name}", value)

    # Detecting

    def _look(self, trainer: Trainer, window: list[MicroBatch], optimizer: Optimizer) -> tuple[bool, bool]:
        """Whether the losses, and the gradients, hold NaN or infinity, on any rank."""
        gradients = _gradients(optimizer)
        losses = [one.loss.flatten().float() for one in window if one.loss is not None]
        device = trainer.strategy.root_device
        norm = torch.nn.utils.get_total_norm(gradients).to(device)
        finite = torch.cat([norm.new_zeros(1), *losses]).isfinite().all()
        bad = trainer.strategy.reduce((~torch.stack((finite, norm.isfinite()))).float(), reduce_op="max")
        if not bad.any().item():  # the one number that the host waits for
            return False, False
        # Squares of finite gradients may overflow, so this is checked exactly.
        bad[1] = float(not all(one.isfinite().all() for one in gradients))
        bad_loss, bad_gradient = trainer.strategy.reduce(bad, reduce_op="max").tolist()
        return bool(bad_loss), bool(bad_gradient)

    def _leave_out(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Step without gradients, which changes nothing."""
        scaler = active_scaler(trainer)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # With a fused optimizer the scaler must check the gradients before the step.
            scaler.unscale_(optimizer)
        self._drop_gradients(pl_module, optimizer)
        self._buffers.restore()

    def _drop_gradients(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for group in (*optimizer.param_groups, {"params": pl_module.parameters()}):
            for one in group["params"]:
                one.grad = None

    # Acting

    def _meet(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        optimizer: Optimizer,
        window: list[MicroBatch],
        bad_loss: bool,
    ) -> None:
        """Skip and explain a bad step, then continue or stop."""
        what = f"{'the loss' if bad_loss else 'a gradient'} is NaN or infinite"
        event = Event(what, "The update of this step was left out on all ranks.", _bad_gradients(pl_module))
        self._leave_out(trainer, pl_module, optimizer)
        self.skipped += 1
        self._in_a_row += 1
        if self._ring is not None:
            self._going_back = True
            event.outcome = f"The run goes back to an earlier state and leaves out {self.leave_out} steps."
        line = self._explain(trainer, pl_module, window, event)
        if self.on_nonfinite == "stop":
            raise NonFiniteError(f"{line}. Stopped, as on_nonfinite is stop")
        if self._in_a_row >= self.max_in_a_row:
            raise NonFiniteError(
                f"{line}. Stopped after {self._in_a_row} such steps in a row (max_in_a_row); reports are in "
                f"{self._folder}"
            )
        self._tell(f"{line}. {event.outcome}")

    def _count_drop(self, trainer: Trainer, pl_module: LightningModule, window: list[MicroBatch]) -> None:
        """Scaled gradients overflowed, which the scaler sees to. Again and again is worth a word, once."""
        step, scaler = trainer.global_step, active_scaler(trainer)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self._drops = [one for one in self._drops if one > step - RECENT] + [step]
        if self._drops_told or (len(self._drops) < self.max_scale_drops and scale > 1):
            return
        self._drops_told = True
        what = f"the loss scale, now {scale:g}, shrank {len(self._drops)} times within {RECENT} steps"
        event = Event(what, "The GradScaler left out these steps.", _bad_gradients(pl_module))
        self._tell(f"{self._explain(trainer, pl_module, window, event)}. {event.outcome}")

    def _tell(self, line: str) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES:
            rank_zero_warn(line + (" Later ones are only counted." if self._lines == MAX_LINES else ""))

    def _explain(
        self, trainer: Trainer, pl_module: LightningModule, window: list[MicroBatch], event: Event
    ) -> str:
        """Replay and report an event on the ranks that met it; all ranks return the same line."""
        mine = [one for one in window if one.loss is not None and not one.loss.isfinite().all()]
        ranks = _ranks_with(trainer, bool(mine))
        where = f" on rank {', '.join(map(str, ranks))}" if ranks and trainer.world_size > 1 else ""
        line = f"NonFiniteGuard: step {trainer.global_step}: {event.what}{where}"
        if self._explained >= self.max_bundles:
            return line
        self._explained += 1
        report, found = "", False
        if not ranks or trainer.global_rank in ranks:
            try:
                report, found = write_report(
                    self._folder, self.max_bundle_mib, trainer, pl_module, mine or window, event
                )
            except Exception as error:  # the other ranks wait, and the run can go on without a report
                report = f"no report could be written: {type(error).__name__}: {error}"
        ranks = _ranks_with(trainer, found) or ranks or [0]
        return f"{line}; {trainer.strategy.broadcast(report, src=ranks[0])}"


def _ranks_with(trainer: Trainer, flag: bool) -> list[int]:
    flags = torch.tensor([int(flag)], device=trainer.strategy.root_device)
    return trainer.strategy.all_gather(flags).flatten().nonzero().flatten().tolist()


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    """As far as there are any values in them."""
    found = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
    dense = [one._values() if one.is_sparse else one for one in found]
    return [one for one in dense if one.numel()]


def _bad_gradients(module: LightningModule) -> list[str]:
    named = [(name, one.grad) for name, one in module.named_parameters() if one.grad is not None]
    return [name for name, one in named if not (one._values() if one.is_sparse else one).isfinite().all()]


def _schedulers(trainer: Trainer) -> list[Any]:
    return [one.scheduler for one in trainer.lr_scheduler_configs]
