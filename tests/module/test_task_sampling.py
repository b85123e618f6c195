"""Sampling by task under a real Trainer: what is trained on, by loss, on ranks, resumed, printed."""

import csv
import dataclasses
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_vlm import VLMDataModule
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Constant

TASKS = ("vqa", "ocr", "caption")
HARD = TaskSampling("hard", temperature=0.2, floor=0.1, every_n_samples=18)


@pytest.fixture(scope="module")
def source(listed):
    """36 samples, half of them vqa."""
    drawn = Drawn("train", size=36, seed=5)
    return listed(
        dataclasses.replace(one, task=TASKS[max(0, at % 4 - 1)], source=f"{at}")
        for at, one in enumerate(drawn)
    )


class Seen(Callback):
    """Sources in the order in which they were trained on, and the probabilities' scores at the end."""

    def __init__(self):
        self.sources, self.tasks = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.sources += batch.sources
        self.tasks.append(batch.tasks)


@pytest.fixture
def fit(module, make_quiet, source):
    def run(sampling, batch_size=6, accumulate=1, callbacks=(), ckpt_path=None, workers=0, **options):
        optimizer = partial(torch.optim.SGD, lr=0.5)
        one = module("llava", adapt={"projector": "full"}, schedule=Constant(), optimizer=optimizer)
        data = VLMDataModule(train=source, batch_size=batch_size, sampling=sampling, num_workers=workers)
        seen = Seen()
        given = {"max_epochs": 3, "accumulate_grad_batches": accumulate, **options}
        trainer = make_quiet(callbacks=[seen, *callbacks], **given)
        trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        seen.weight = one.model.model.multi_modal_projector.linear_1.weight.detach().clone()
        return seen

    return run


def test_by_loss_on_any_split(fit, on_two_ranks):
    """What is drawn depends on losses: that all splits draw the same shows that all have the same."""
    whole = fit(HARD)
    assert len(whole.sources) == 3 * 36
    for workers in (0, 1):
        assert fit(HARD, 2, 3, workers=workers).sources == whole.sources
    ranks = on_two_ranks(lambda: list(map(int, fit(HARD, 3, strategy="ddp", devices=2).sources)))
    steps = [rank[3 * at : 3 * at + 3] for at in range(18) for rank in ranks]
    assert [str(one) for step in steps for one in step] == whole.sources


@pytest.mark.parametrize("step", [4, 6, 8])
@pytest.mark.parametrize("sampling", [HARD, "grouped"], ids=["hard", "grouped"])
def test_resumed_it_trains_on_the_rest(fit, tmp_path, step, sampling):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = fit(sampling, callbacks=[saves], enable_checkpointing=True)
    resumed = fit(sampling, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert resumed.sources == whole.sources[6 * step :]
    assert torch.equal(resumed.weight, whole.weight)


def test_grouped_batches_have_one_task(fit):
    seen = fit("grouped")
    assert all(len(set(tasks)) == 1 for tasks in seen.tasks)
    assert len({tasks[0] for tasks in seen.tasks}) == 3


def test_what_is_logged_and_printed(fit, tmp_path, capsys, caplog):
    logger = CSVLogger(tmp_path, name="", version="")
    seen = fit("uniform", logger=logger, log_every_n_steps=4)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data/samples/ocr"]]
    tasks = [task for batch in seen.tasks for task in batch]
    assert [row["step"] for row in rows] == ["3", "7", "11", "15"]
    for row in rows:
        so_far = tasks[: 6 * (int(row["step"]) + 1)]
        for task in TASKS:
            assert float(row[f"data/samples/{task}"]) == so_far.count(task)
            size = 18 if task == "vqa" else 9
            assert float(row[f"data/epochs/{task}"]) == pytest.approx(so_far.count(task) / size)
    (line,) = [one.getMessage() for one in caplog.records if "Epochs of each task" in one.getMessage()]
    counts = dict(re.findall(r"(\w+) [\d.]+ \((\d+) samples\)", line))
    assert counts == {task: str(tasks.count(task)) for task in TASKS}
    assert f"ocr {tasks.count('ocr') / 9:.2f} (" in line


def test_what_cannot_be_sampled_is_refused_at_setup(fit):
    weights = {"vqa": 1.0, "ocr": 1.0, "captions": 2.0}
    with pytest.raises(UserError, match=r"no such task.*did you mean 'caption'"):
        fit(TaskSampling("weights", weights=weights))
    with pytest.raises(UserError, match="every_n_samples: found 18; expected 30 or more"):
        fit(HARD, workers=1, accumulate=2)
    with pytest.raises(UserError, match="sampling: found 'unifrom'; expected uniform, grouped"):
        fit("unifrom")
