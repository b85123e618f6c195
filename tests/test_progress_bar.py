"""The progress bar of the command counts the batches that come."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_vlm.outputs.progress_bar import ProgressBar


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.line(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Seen(Callback):
    """What the bar shows at the end of each epoch, and of the run."""

    def __init__(self):
        self.shown = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/here.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        bar = trainer.progress_bar_callback
        task = bar.progress.tasks[0]
        self.shown.append((task.description.strip().split("]")[-1], task.completed, task.total))


@pytest.mark.parametrize(
    ("window", "steps", "expected"),
    [
        (1, 10, [("Epoch 0", 8, 8), ("Epoch 1", 2, 2)]),
        (3, 4, [("Epoch 0", 8, 8), ("Epoch 1", 3, 3)]),  # 3 steps of 3, 3 and 2 batches
        (3, 6, [("Epoch 0", 8, 8), ("Epoch 1", 8, 8)]),
    ],
)
def test_batches_until_the_last_step(tmp_path, window, steps, expected):
    assert fit(tmp_path, window, steps) == expected


@pytest.mark.parametrize(("steps", "expected"), [(5, ("Epoch 0", 5, 5)), (8, ("Epoch 0", 8, 8))])
def test_a_run_that_goes_on_in_an_epoch(tmp_path, steps, expected):
    fit(tmp_path, 1, 3)
    assert fit(tmp_path, 1, steps, ckpt_path=tmp_path / "here.ckpt") == [expected]


def test_epochs_are_counted_as_by_lightning(tmp_path):
    assert fit(tmp_path, 1, -1, max_epochs=2) == [("Epoch 0/1", 8, 8), ("Epoch 1/1", 8, 8)]


def fit(folder, window, steps, ckpt_path=None, **options):
    seen = Seen()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=window,
        callbacks=[ProgressBar(), seen],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Line(), DataLoader(torch.ones(8, 1), batch_size=1), ckpt_path=ckpt_path)
    return seen.shown


class Left(Callback):
    """Keeps when the bar says that the run will be over, after each batch."""

    def __init__(self):
        self.shown = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.shown.append(trainer.progress_bar_callback.get_metrics(trainer, pl_module).get("left"))


@pytest.mark.parametrize(("epochs", "known"), [(1, 0), (2, 15)])
def test_a_run_of_several_epochs_shows_when_it_is_over(tmp_path, epochs, known):
    left = Left()
    line = Line()
    line.steps = SimpleNamespace(total=8 * epochs)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=epochs,
        callbacks=[ProgressBar(), left],
        logger=False,
        accelerator="cpu",
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(line, DataLoader(torch.ones(8, 1)))
    times = [one for one in left.shown if one is not None]
    assert len(times) == known  # not before two steps can be compared
    assert set(times) <= {"0:00:00", "0:00:01", "0:00:02"}
    assert times[-1:] == ["0:00:00"] * bool(known)
