"""Measures how fast a run trains, and what its time goes to."""

import math
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_vlm_callbacks.ddp import sum_over_ranks
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.requirements import require_lightning
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.run_report.steps import steps_made
from lightning_vlm_callbacks.runs import log_metrics
from lightning_vlm_callbacks.throughput_monitor.clock import clock_of
from lightning_vlm_callbacks.throughput_monitor.counting import BatchCounter, counter_of
from lightning_vlm_callbacks.throughput_monitor.fetching import ProfilerListener
from lightning_vlm_callbacks.throughput_monitor.ledger import (
    NUMBERS,
    LapKind,
    Ledger,
    Timeline,
    Totals,
    figures,
    numbers_of,
)
from lightning_vlm_callbacks.throughput_monitor.memory import peak_memory
from lightning_vlm_callbacks.throughput_monitor.peaks import peak_of
from lightning_vlm_callbacks.throughput_monitor.summary import Summary, summarize

__all__ = ["ThroughputMonitor"]


class ThroughputMonitor(Callback):
    """Measures samples, tokens and learned tokens per second, MFU, padding, waiting for data, and memory.

    Logged as `throughput/...` for each stretch between two steps that the Trainer logs:
    `samples_per_second`, `tokens_per_second`, `learned_tokens_per_second` (of all processes together),
    `padding_share` of the tokens that are computed, `waiting_share` of the time that goes by until the next
    batch is there, `step_seconds`, `tflops_per_device`, `mfu` (model FLOPs utilisation, of PaLM,
    https://arxiv.org/abs/2204.02311, appendix B: what the model needs, against the peak of the devices) and
    `memory_gib`, the most that the device's tensors have taken, or the process on a CPU. What isn't known
    isn't logged, and the summary at the end says why. A summary is printed, kept in `summary`, and sent to
    the run's report.

    The time is that of training: steps, and the waiting between them. The first `warmup_steps`, batches in
    which torch compiled code, validation and the saving of checkpoints don't count; the summary shows them.

    The host never waits for the device. On CUDA all moments are events in the device's queue, read when they
    have come, so that a stretch is logged some steps late (under its own step). A batch is *waited for* while
    the device has nothing to do, which is less than the host waits if that is ahead. On other devices the
    times are those of the host: right on a CPU, and over many steps.

    Processes add up their counts once a stretch, by one collective of five numbers that isn't waited for;
    times and memory are those of the first process, as all make each step together. A resumed run measures
    from where it goes on.

    Lightning has a callback of this name. It waits for the device at every batch, takes waiting for data and
    padding for training, multiplies one batch's operations and the first process's samples by all, reports
    nothing at the end, and its peaks are off for many cards (see `peaks.py`), so only its idea is used here.

    Args:
        every_n_steps: How often to log; None is the Trainer's `log_every_n_steps`.
        warmup_steps: So many steps at the start of a fit don't count.
        counter: How batches are counted. None asks the module's `batch_counter()`, if it has one, and else
            counts the first dimension of the first tensor as samples.
        peak_tflops: The most that a device computes in TFLOP/s, for a device that isn't known (dense, in the
            precision of the run) or to compare with something else.
        print_summary: Whether to print the summary.

    Raises:
        MisconfigurationException: An argument is out of range, or the Trainer has a second ThroughputMonitor.

    Example::

        trainer = Trainer(callbacks=[ThroughputMonitor()])
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        warmup_steps: int = 3,
        counter: BatchCounter | None = None,
        peak_tflops: float | None = None,
        print_summary: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"every_n_steps": every_n_steps, "peak_tflops": peak_tflops}.items():
            if value is not None and not value > 0:
                raise MisconfigurationException(f"{name}: found {value}; expected a number > 0, or None")
        if warmup_steps < 0:
            raise MisconfigurationException(f"warmup_steps: found {warmup_steps}; expected 0 or more")
        self.every_n_steps = every_n_steps
        self.warmup_steps = warmup_steps
        self.counter = counter
        self.peak_tflops = peak_tflops
        self.print_summary = print_summary
        self.summary: Summary | None = None
        """Of the last fit, from its end on."""
        self._numbers: list[float] = []
        """The sums of the stretch that is being made, of this process."""
        self._steps = 0
        """Its steps."""
        self._listener: ProfilerListener | None = None
        self._timeline: Timeline | None = None
        """What time is spent on; None outside of training."""

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_lightning("ThroughputMonitor", trainer)
        monitors = [one for one in trainer.callbacks if isinstance(one, ThroughputMonitor)]  # type: ignore[attr-defined]
        if len(monitors) > 1:
            raise MisconfigurationException(
                f"ThroughputMonitor: found {len(monitors)} in the Trainer, which would log under the same "
                "names; expected one"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        warn_if_beyond(
            trainer, "ThroughputMonitor: every_n_steps", self.every_n_steps, "it logs at its end only"
        )
        self._every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._device = trainer.strategy.root_device
        self._peak, self._why_no_peak = peak_of(self._device)
        if self.peak_tflops is not None:
            self._peak = self.peak_tflops * 1e12
        self._counter = counter_of(pl_module, self.counter)
        self.summary = None
        self._compiled = _compiled_frames()
        self._start_step = self._step = steps_made(trainer)
        self._step_counts = True
        """Whether all batches of the step that is being made count."""
        self._begin_stretch()
        clock = clock_of(self._device)
        self._ledger, self._timeline = Ledger(clock), Timeline(clock)
        self._listener = ProfilerListener(
            trainer.profiler,  # type: ignore[attr-defined]
            self._timeline.begin,
            self._timeline.end,
        )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._timeline is not None:
            # Since the last batch its loader was set up.
            self._timeline.rename("validation")
            self._timeline.begin("validation")

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._timeline is not None:
            self._timeline.end()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._timeline is None:
            return
        kind = self._kind()
        self._ledger.add(self._timeline.take(), kind)
        # In the warm-up too, so that a counter that has to look at a model first does it there.
        numbers = numbers_of(self._counter.count(batch), self._counter.operations(batch))
        if kind != "training":
            self._step_counts = False
        else:
            self._numbers = [total + number for total, number in zip(self._numbers, numbers, strict=True)]
        step = steps_made(trainer)
        if step != self._step:
            self._step = step
            self._steps += self._step_counts
            self._step_counts = True
            if self._every > 0 and step % self._every == 0:
                self._close_stretch(trainer)
        self._log(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._timeline is not None:
            self._ledger.add(self._timeline.take(), self._kind())
            self._close_stretch(trainer)
            self._finish(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._timeline is not None:
            # Other processes may not come to add up the last stretch.
            if trainer.world_size == 1:
                self._close_stretch(trainer)
            self._finish(trainer, failed=True)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop_listening()

    # Stretches

    def _kind(self) -> LapKind:
        """What the batch that ends was."""
        before, self._compiled = self._compiled, _compiled_frames()
        if self._step - self._start_step < self.warmup_steps:
            return "warm-up"
        return "compiling" if self._compiled != before else "training"

    def _begin_stretch(self) -> None:
        self._numbers = [0.0] * len(NUMBERS)
        self._steps = 0

    def _close_stretch(self, trainer: Trainer) -> None:
        """Add up the processes' counts; all of them must come here."""
        numbers: HostCopy | list[float] = self._numbers
        if trainer.world_size > 1:
            numbers = self._over_processes(trainer)
        self._ledger.close(max(self._step - 1, 0), self._steps, numbers)
        self._begin_stretch()

    def _over_processes(self, trainer: Trainer) -> HostCopy | list[float]:
        if not torch.distributed.is_initialized():
            return [math.nan] * len(NUMBERS)
        pinned = self._device.type == "cuda"
        local = torch.tensor(self._numbers, dtype=torch.float64, pin_memory=pinned)
        (total,) = sum_over_ranks(local.to(self._device, non_blocking=True))
        if isinstance(
            trainer.strategy, ModelParallelStrategy
        ):  # ranks of a tensor-parallel group share batches
            total *= trainer.strategy.device_mesh["data_parallel"].size() / trainer.world_size
        return HostCopy(total)

    def _log(self, trainer: Trainer, wait: bool = False) -> None:
        """Log the stretches whose moments have come."""
        for step, totals in self._ledger.read(wait):
            found = self._figures(trainer, totals)
            if found:
                log_metrics(trainer, {f"throughput/{name}": value for name, value in found.items()}, step)

    def _figures(self, trainer: Trainer, totals: Totals) -> dict[str, float]:
        found = figures(totals, trainer.world_size, self._peak)
        memory = peak_memory(self._device)
        if found and memory is not None:
            found["memory_gib"] = memory / 2**30
        return found

    def _finish(self, trainer: Trainer, failed: bool = False) -> None:
        self._stop_listening()
        self._log(trainer, wait=True)
        whole = self._ledger.whole
        if failed and not whole.steps:  # what failed is all that matters
            return
        found = self._figures(trainer, whole)
        why = self._counter.no_operations if whole.number("operations") is None else self._why_no_peak
        loader = trainer.train_dataloader
        processes = trainer.num_devices
        self.summary = summarize(whole, found, why, getattr(loader, "num_workers", None), processes)
        text = "; ".join([*self.summary.lines, *self.summary.advice])
        record_event(trainer, "throughput", text, figures=found)
        if self.print_summary and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"ThroughputMonitor: {text}")

    def _stop_listening(self) -> None:
        self._timeline = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _compiled_frames() -> int:
    """How many functions torch has compiled or tried to, in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters["frames"]["total"] if dynamo is not None else 0
