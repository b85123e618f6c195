"""Time that passes only when a test says so, and a run in which everything takes a known time."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning_vlm_callbacks import BatchCounter, Counts
from lightning_vlm_callbacks.throughput_monitor import callback
from torch.utils.data import DataLoader, Dataset


class Time:
    """A clock of the host on which time passes by hand."""

    def __init__(self):
        self.hours = 0.0

    def spend(self, seconds):
        self.hours += seconds

    def now(self):
        return self.hours

    def is_past(self, moment):
        return True

    def wait(self, moment):
        pass

    def seconds(self, start, end):
        return end - start


class Words(BatchCounter):
    """Each sample has three tokens, of which one is learned, and one of padding."""

    def count(self, batch):
        size = len(batch)
        return Counts(samples=size, tokens=3 * size, learned=size, padding=size)

    def operations(self, batch):
        return 1e12 * len(batch)


class Samples(Dataset):
    """Each takes a second to make."""

    def __init__(self, time, size):
        self.time, self.size = time, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.time.spend(1)
        return torch.full((2,), float(index))


class Timed(LightningModule):
    """Training takes 6 s a batch, validation 10 s."""

    def __init__(self, time, size=24, batch_size=2):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(2, 1)
        self.time, self.size, self.batch_size = time, size, batch_size

    def training_step(self, batch, batch_idx):
        self.time.spend(6)
        return self.net(batch).square().mean() / 100

    def validation_step(self, batch, batch_idx):
        self.time.spend(10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(Samples(self.time, self.size // world + rank), self.batch_size)

    def val_dataloader(self):
        return SlowStart(self.time, torch.zeros(2, 2), 1)


class SlowStart(DataLoader):
    """It takes 3 s until it is there, as with worker processes."""

    def __init__(self, time, *arguments):
        self.time = time
        super().__init__(*arguments)

    def __iter__(self):
        self.time.spend(3)
        return super().__iter__()


class SlowSave(Callback):
    """A checkpoint takes 20 s."""

    def __init__(self, time):
        self.time = time

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.time.spend(20)


@pytest.fixture
def hours(monkeypatch):
    time = Time()
    monkeypatch.setattr(callback, "clock_of", lambda device: time)
    return time


@pytest.fixture
def rows():
    """What a CSVLogger has of throughput: step -> figures."""

    def read(logger):
        found = {}
        for row in logger.experiment.metrics:
            figures = {
                name.removeprefix("throughput/"): value
                for name, value in row.items()
                if name.startswith("throughput/")
            }
            if figures:
                found[row["step"]] = figures
        return found

    return read
