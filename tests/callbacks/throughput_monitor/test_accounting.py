"""What counts as training time, and what is counted in it, in runs whose times are known exactly."""

import pytest
import torch
from lightning.fabric.utilities.throughput import Throughput
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import RunReport, ThroughputMonitor
from lightning_vlm_callbacks.run_report.charts import charts
from lightning_vlm_callbacks.run_report.history import read_history

from tests.callbacks.throughput_monitor.conftest import SlowSave, Timed, Words

STEP, FETCH = 6.0, 2.0
"""Seconds of a batch of two samples."""


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.setattr(ExperimentWriter, "save", lambda self: None)
    return CSVLogger(tmp_path)


@pytest.fixture
def fit(hours, make_trainer, logger):
    def run(monitor, module=None, callbacks=(), ckpt_path=None, **options):
        given = {"max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 4, **options}
        trainer = make_trainer(callbacks=[monitor, *callbacks], logger=logger, **given)
        trainer.fit(module or Timed(hours), ckpt_path=ckpt_path)
        return trainer

    return run


def test_figures_of_each_stretch(fit, logger, rows):
    monitor = ThroughputMonitor(warmup_steps=0, counter=Words(), peak_tflops=1.0)
    fit(monitor)
    found = rows(logger)
    assert [*found] == [3, 7, 11]
    seconds = STEP + FETCH
    expected = {
        "samples_per_second": 2 / seconds,
        "tokens_per_second": 6 / seconds,
        "learned_tokens_per_second": 2 / seconds,
        "padding_share": 0.25,
        "waiting_share": FETCH / seconds,
        "step_seconds": seconds,
        "tflops_per_device": 2 / seconds,
        "mfu": 2 / seconds,
    }
    for figures in found.values():
        assert figures.pop("memory_gib") > 0.1
        assert figures == pytest.approx(expected)
    figures = dict(monitor.summary.figures)
    figures.pop("memory_gib")
    assert figures == pytest.approx(expected)


def test_the_rates_are_those_of_lightnings_own_accounting(fit, hours, logger, rows):
    theirs = Throughput(available_flops=1e12, window_size=12)

    class Theirs(Callback):
        samples = 0

        def on_train_start(self, trainer, pl_module):
            theirs.update(time=hours.now(), batches=0, samples=0, lengths=0, flops=0)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.samples += len(batch)
            done = {"batches": batch_idx + 1, "samples": self.samples, "lengths": self.samples * 3}
            theirs.update(time=hours.now(), flops=int(2e12), **done)

    fit(monitor := ThroughputMonitor(warmup_steps=0, counter=Words(), peak_tflops=1.0), callbacks=[Theirs()])
    expected = theirs.compute()
    figures = monitor.summary.figures
    assert figures["samples_per_second"] == pytest.approx(expected["device/samples_per_sec"])
    assert figures["tokens_per_second"] == pytest.approx(expected["device/items_per_sec"])
    assert figures["mfu"] == pytest.approx(expected["device/mfu"])


def test_warm_up_validation_and_checkpoints_are_shown_and_not_counted(fit, hours):
    monitor = ThroughputMonitor(warmup_steps=2, counter=Words())
    saves = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
    fit(
        monitor,
        callbacks=[SlowSave(hours), saves],
        enable_checkpointing=True,
        limit_val_batches=2,
        val_check_interval=6,
    )
    assert monitor.summary.figures["step_seconds"] == pytest.approx(STEP + FETCH)
    assert monitor.summary.figures["samples_per_second"] == pytest.approx(2 / 8)
    line = monitor.summary.lines[-1]
    assert line == "not counted: warm-up 16.0 s, validation 46.0 s, checkpoints 80.0 s"


def test_a_checkpoint_of_a_validation_is_no_validation(fit, hours):
    monitor = ThroughputMonitor(warmup_steps=0)
    saves = ModelCheckpoint()
    fit(monitor, callbacks=[SlowSave(hours), saves], enable_checkpointing=True, limit_val_batches=2)
    assert monitor.summary.lines[-1] == "not counted: validation 23.0 s, checkpoints 20.0 s"


def test_accumulation(fit, logger, rows):
    """A step is three batches; the last step of the epoch is shorter."""
    fit(ThroughputMonitor(warmup_steps=1, counter=Words()), accumulate_grad_batches=5, log_every_n_steps=1)
    found = rows(logger)
    assert [*found] == [1, 2]
    assert [figures["step_seconds"] for figures in found.values()] == [5 * 8, 2 * 8]
    assert [figures["samples_per_second"] for figures in found.values()] == [2 / 8, 2 / 8]


def test_the_last_steps_are_logged_too(fit, logger, rows):
    fit(ThroughputMonitor(warmup_steps=0), log_every_n_steps=50)
    assert [*rows(logger)] == [11]


def test_how_often_is_the_callbacks_own(fit, logger, rows):
    fit(ThroughputMonitor(every_n_steps=6, warmup_steps=0), log_every_n_steps=1)
    assert [*rows(logger)] == [5, 11]


def test_a_second_fit_begins_anew(fit, hours):
    monitor = ThroughputMonitor(warmup_steps=1)
    lines = []
    for size in (24, 8):
        fit(monitor, Timed(hours, size))
        lines.append(monitor.summary.lines[-1])
        assert monitor.summary.figures["step_seconds"] == pytest.approx(8)
    assert lines == ["not counted: warm-up 8.0 s"] * 2


def test_a_resumed_run_measures_what_it_trains(fit, hours, tmp_path):
    trainer = fit(ThroughputMonitor(), max_steps=6, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    monitor = ThroughputMonitor(warmup_steps=2, counter=Words())
    fit(monitor, ckpt_path=tmp_path / "half.ckpt", max_steps=11, max_epochs=2)
    assert monitor.summary.figures["samples_per_second"] == pytest.approx(2 / 8)
    assert "warm-up 16.0 s" in monitor.summary.lines[-1]


def test_nothing_but_warm_up(fit, logger, rows):
    monitor = ThroughputMonitor(warmup_steps=20)
    fit(monitor)
    assert not rows(logger)
    assert monitor.summary.lines == [
        "nothing was measured: all of its steps were warm-up, or compiled code",
        "not counted: warm-up 96.0 s",
    ]


def test_what_is_unknown_is_not_logged(fit, logger, rows, hours):
    class Texts(Timed):
        def training_step(self, batch, batch_idx):
            return super().training_step(torch.ones(len(batch[0]), 2), batch_idx)

        def train_dataloader(self):
            return [[["a", "b"]]] * 3

    fit(monitor := ThroughputMonitor(warmup_steps=0), Texts(hours))
    ((_, figures),) = rows(logger).items()
    assert figures.keys() == {"waiting_share", "step_seconds", "memory_gib"}
    assert monitor.summary.lines[:2] == [
        "6 s a step",
        "no MFU: nothing counts operations; give a counter, or the module a batch_counter()",
    ]


def test_operations_unknown_for_one_batch_are_unknown_for_its_stretch(fit, logger, rows):
    class Sometimes(Words):
        def operations(self, batch):
            return None if 6 in batch[:, 0] else super().operations(batch)

    fit(monitor := ThroughputMonitor(warmup_steps=0, counter=Sometimes()))
    assert ["tflops_per_device" in figures for figures in rows(logger).values()] == [False, True, True]
    assert "tflops_per_device" not in monitor.summary.figures


def test_the_module_may_count(fit, hours):
    class Counting(Timed):
        def batch_counter(self):
            return Words()

    fit(monitor := ThroughputMonitor(warmup_steps=0), Counting(hours))
    assert monitor.summary.figures["tokens_per_second"] == pytest.approx(6 / 8)
    assert monitor.summary.lines[1].endswith(
        "no MFU: the peak of a cpu isn't known; give ThroughputMonitor peak_tflops"
    )


def test_advice_where_data_is_the_bottleneck(fit, hours):
    fit(monitor := ThroughputMonitor(warmup_steps=0))
    (advice,) = monitor.summary.advice
    assert advice.endswith("(25% of the time is spent waiting for it): set num_workers to 1 (now 0)")
    fit(monitor, Timed(hours, batch_size=1), max_steps=3)
    assert "14%" in monitor.summary.advice[0]


def test_batches_that_compile_are_not_counted(fit, hours):
    class Compiled(Timed):
        def __init__(self, time):
            super().__init__(time)
            self.compiled = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)

        def training_step(self, batch, batch_idx):
            self.compiled(torch.zeros(2 + batch_idx // 6))  # compiled at batches 0 and 6
            return super().training_step(batch, batch_idx)

    torch.compiler.reset()
    fit(monitor := ThroughputMonitor(warmup_steps=0, counter=Words()), Compiled(hours))
    assert monitor.summary.figures["step_seconds"] == pytest.approx(8)
    assert monitor.summary.lines[-1] == "not counted: compiling 16.0 s"


def test_an_interrupted_run_has_a_summary_too(fit, hours, tmp_path):
    class Interrupted(Timed):
        def training_step(self, batch, batch_idx):
            if batch_idx == 7:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    monitor, profiler = ThroughputMonitor(warmup_steps=0), SimpleProfiler()
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(monitor, Interrupted(hours), [RunReport(str(tmp_path))], profiler=profiler)
    assert monitor.summary.figures["samples_per_second"] == pytest.approx(2 / 8)
    assert not {"start", "stop"} & vars(profiler).keys()
    (event,) = (one for one in read_history(tmp_path / "report.jsonl").events if one.kind == "throughput")
    assert event.text.startswith("0.25 samples per second; ")


def test_the_profiler_of_the_user_works_as_before(fit, tmp_path):
    profiler = SimpleProfiler()
    monitor = ThroughputMonitor(warmup_steps=0)
    fit(monitor, profiler=profiler)
    assert len(profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]) == 12
    assert not {"start", "stop"} & vars(profiler).keys()


def test_waiting_is_unknown_if_lightning_does_not_announce_it(fit, monkeypatch, logger, rows):
    monkeypatch.setattr("lightning_vlm_callbacks.throughput_monitor.fetching.ACTIONS", {})
    fit(monitor := ThroughputMonitor(warmup_steps=0))
    assert "waiting_share" not in monitor.summary.figures
    assert monitor.summary.figures["step_seconds"] == pytest.approx(8)


def test_two_monitors_are_refused(make_trainer, hours):
    with pytest.raises(MisconfigurationException, match="found 2 in the Trainer"):
        make_trainer(callbacks=[ThroughputMonitor(), ThroughputMonitor()]).fit(Timed(hours))


def test_processes_add_up(on_two_ranks, make_trainer, hours, tmp_path):
    """The second one's batches are larger."""

    class Uneven(Timed):
        def train_dataloader(self):
            self.batch_size = 2 + self.trainer.global_rank
            self.size = 2 * 4 * self.batch_size
            return super().train_dataloader()

    def on_rank():
        monitor = ThroughputMonitor(warmup_steps=1, counter=Words(), peak_tflops=1.0)
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        trainer = make_trainer(callbacks=[monitor], max_steps=4, limit_val_batches=0, **options)
        trainer.fit(Uneven(hours))
        return monitor.summary.figures

    first, second = on_two_ranks(on_rank)
    assert first["samples_per_second"] == pytest.approx(5 / 8)
    assert first["mfu"] == pytest.approx(5 / 8 / 2)
    assert second["samples_per_second"] == pytest.approx(5 / 9)  # it takes longer for its larger batches


def test_a_report_draws_rates_shares_and_seconds_apart(fit, tmp_path):
    monitor = ThroughputMonitor(warmup_steps=0, counter=Words(), peak_tflops=1.0)
    fit(monitor, callbacks=[RunReport(str(tmp_path))])
    found = {chart.title: set(chart.curves) for chart in charts(read_history(tmp_path / "report.jsonl"))}
    assert found["Throughput"] == {"samples", "tokens", "learned_tokens"}
    assert found["Waiting for data, padding, utilisation"] == {"waiting_share", "padding_share", "mfu"}
    assert {"Seconds of a step", "Memory, GiB", "TFLOP/s of a device"} <= found.keys()
