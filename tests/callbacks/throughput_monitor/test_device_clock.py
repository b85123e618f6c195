"""The host never waits for a device, and the times are those of the device: with one that is pretended."""

from types import SimpleNamespace

import pytest
import torch
from lightning_vlm_callbacks import ThroughputMonitor
from lightning_vlm_callbacks.throughput_monitor import callback
from lightning_vlm_callbacks.throughput_monitor.clock import DeviceClock, HostClock, clock_of

from tests.callbacks.throughput_monitor.conftest import Timed, Words


class Device:
    """Does what is queued one after another, while the host goes on."""

    def __init__(self):
        self.host = self.free = 0.0
        self.waited = 0
        """How often the host has waited."""

    def spend(self, seconds):
        """The host does something."""
        self.host += seconds

    def queue(self, seconds):
        """The host asks the device to do something."""
        self.free = max(self.free, self.host) + seconds

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self, stream):
        self.time = max(self.device.free, self.device.host)

    def query(self):
        return self.time <= self.device.host

    def synchronize(self):
        self.device.waited += not self.query()
        self.device.host = max(self.device.host, self.time)

    def elapsed_time(self, other):
        assert self.query()
        assert other.query()
        return (other.time - self.time) * 1000


class Queued(Timed):
    """The device takes 6 s for a batch, which the host queues in half a second."""

    def training_step(self, batch, batch_idx):
        self.time.queue(6)
        loss = super().training_step(batch, batch_idx)
        self.time.spend(-5.5)
        return loss


@pytest.fixture
def fit(monkeypatch, make_trainer):
    def run(module, monitor, device):
        monkeypatch.setattr(torch.cuda, "Event", device.event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
        monkeypatch.setattr(callback, "clock_of", lambda _: DeviceClock(torch.device("cuda")))
        waited = SimpleNamespace()
        trainer = make_trainer(
            callbacks=[monitor],
            max_epochs=1,
            limit_val_batches=0,
            log_every_n_steps=4,
            enable_progress_bar=False,
        )
        end = monitor.on_train_end

        def before_end(*arguments):
            waited.times = device.waited
            end(*arguments)

        monkeypatch.setattr(monitor, "on_train_end", before_end)
        trainer.fit(module)
        return waited.times

    return run


@pytest.mark.parametrize(("fetch", "idle"), [(1, 0), (3, 0.5)])
def test_waiting_is_the_time_in_which_the_device_has_nothing_to_do(fit, fetch, idle):
    """A batch of two samples takes the host 2.5 s or 6.5 s, the device 6 s."""
    device = Device()
    module = Queued(device)
    module.train_dataloader = lambda: torch.utils.data.DataLoader(Slow(device, fetch), 2)
    monitor = ThroughputMonitor(warmup_steps=1, counter=Words())
    assert fit(module, monitor, device) == 0
    seconds = max(6, 2 * fetch + 0.5)
    figures = monitor.summary.figures
    assert figures["step_seconds"] == pytest.approx(seconds)
    assert figures["waiting_share"] == pytest.approx(idle / seconds)
    assert figures["samples_per_second"] == pytest.approx(2 / seconds)


class Slow(torch.utils.data.Dataset):
    def __init__(self, time, seconds):
        self.time, self.seconds = time, seconds

    def __len__(self):
        return 48

    def __getitem__(self, index):
        self.time.spend(self.seconds)
        return torch.zeros(2)


def test_a_stretch_is_logged_under_its_own_step_when_its_moments_have_come(fit, monkeypatch):
    logged = []
    monkeypatch.setattr(
        callback, "log_metrics", lambda trainer, metrics, step: logged.append((trainer.global_step, step))
    )
    device = Device()
    fit(Queued(device), ThroughputMonitor(warmup_steps=0), device)
    now, steps = zip(*logged, strict=True)
    assert steps == (3, 7, 11)
    assert now[0] > 4  # the host is ahead of the device


def test_which_clock():
    assert isinstance(clock_of(torch.device("cuda", 0)), DeviceClock)
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
