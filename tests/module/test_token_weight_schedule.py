"""What a batch weighs at each step, against tables written by hand."""

import csv
import os
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger

from lightning_vlm import VLMDataModule
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights

PLAN = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}
HALF = [{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.0}]


class Weighed(Callback):
    """The weight of instructions that each training batch came with; and of each validation batch."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append(instruction_weight(batch))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(instruction_weight(batch))


def instruction_weight(batch):
    """The one weight of instruction tokens, read off the targets; 0 if they are none."""
    kinds = batch.kinds.flatten()[batch.targets.positions + 1]
    (weight,) = set(batch.targets.weights[kinds == Kind.INSTRUCTION].tolist()) or {0.0}
    assert (batch.targets.weights[kinds == Kind.RESPONSE] == 1).all()
    assert (batch.kinds == Kind.INSTRUCTION).any()
    return weight


def fit(module, make_quiet, schedule, size=8, batch_size=1, workers=0, ckpt=None, more=(), **options):
    seed_everything(1)
    weighed, one = Weighed(), module("llava", adapt=PLAN)
    data = VLMDataModule(
        train=Drawn("train", size=size, tasks=["vqa"]),
        val=Drawn("val", size=2, tasks=["vqa"]),
        batch_size=batch_size,
        num_workers=workers,
    )
    trainer = make_quiet(callbacks=[schedule, weighed, *more], **options)
    trainer.fit(one, data, ckpt_path=ckpt, weights_only=True)
    return one, weighed, {name: p.detach().clone() for name, p in one.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_has_the_weights_of_its_step(module, make_quiet, workers):
    """However many batches are rendered ahead."""
    _, found, _ = fit(module, make_quiet, TokenWeightSchedule(), size=10, workers=workers, max_epochs=1)
    assert found.trained == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0]


def test_a_step_has_one_table(module, make_quiet):
    """An epoch of 5 batches is steps of 2, 2, 1."""
    points = [{"at": 0, "instruction": 6.0}, {"at": 1, "instruction": 0.0}]
    schedule = TokenWeightSchedule(points, "linear")
    _, found, _ = fit(module, make_quiet, schedule, size=5, max_epochs=2, accumulate_grad_batches=2)
    assert found.trained == pytest.approx([6, 6, 5, 5, 4, 3, 3, 2, 2, 1])


def test_windows_that_change(module, make_quiet):
    """4 steps, then 2."""
    windows = GradientAccumulationScheduler({0: 1, 1: 2})
    _, found, _ = fit(module, make_quiet, TokenWeightSchedule(HALF), size=4, max_epochs=2, more=[windows])
    assert found.trained == [1, 1, 1, 0, 0, 0, 0, 0]


def test_validation_keeps_the_modules_own(module, make_quiet):
    one, found, _ = fit(
        module, make_quiet, TokenWeightSchedule(HALF), size=4, max_epochs=1, val_check_interval=1
    )
    assert found.trained == [1, 1, 0, 0]
    assert found.validated == [0] * 8
    assert one.token_weights == KindWeights()


def test_after_an_error_the_module_has_its_own_again(module, make_quiet):
    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert pl_module.token_weights.instruction == 1
            raise RuntimeError("power cut")

    one, trainer = module("llava"), make_quiet(max_epochs=1, callbacks=[TokenWeightSchedule(), Fail()])
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(one, VLMDataModule(train=Drawn("train", size=2)))
    assert one.token_weights == KindWeights()


def test_the_update_is_that_of_the_weights(module, make_quiet):
    """Steps of a schedule that is at its second point from the start equal steps with that table."""
    constant = TokenWeightSchedule([{"at": 0, "instruction": 0.25}])
    _, _, found = fit(module, make_quiet, constant, max_epochs=1)
    seed_everything(1)
    one = module("llava", adapt=PLAN, token_weights=KindWeights(instruction=0.25))
    data = VLMDataModule(train=Drawn("train", size=8, tasks=["vqa"]), batch_size=1)
    make_quiet(max_epochs=1).fit(one, data)
    for name, weight in found.items():
        assert torch.equal(weight, dict(one.named_parameters())[name]), name


class Save(Callback):
    def __init__(self, path, batches):
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches -= 1
        if not self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batches", [2, 4, 6, 10])
def test_a_resumed_run_is_the_uninterrupted_one(module, make_quiet, tmp_path, batches):
    """Before, at and after the border of two tables, which is 4; and at an epoch's end, which is 6."""
    path, options = tmp_path / "saved.ckpt", {"size": 6, "max_epochs": 2, "accumulate_grad_batches": 2}
    points = [{"at": 0, "instruction": 1.0, "box": 1.0}, {"at": 0.3, "instruction": 0.5}]
    _, found, whole = fit(
        module, make_quiet, TokenWeightSchedule(points), more=[Save(path, batches)], **options
    )
    _, again, resumed = fit(module, make_quiet, TokenWeightSchedule(points), ckpt=path, **options)
    assert again.trained == found.trained[batches:]
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_two_ranks_have_one_table(module, make_quiet, on_two_ranks):
    def on_rank():
        assert os.environ["WORLD_SIZE"] == "2"
        options = {"size": 8, "strategy": "ddp", "devices": 2, "max_epochs": 1}
        _, found, weights = fit(module, make_quiet, TokenWeightSchedule(HALF), **options)
        return {"trained": found.trained, "weights": weights}

    first, second = on_two_ranks(on_rank)
    assert first["trained"] == second["trained"] == [1, 1, 0, 0]
    for name, weight in first["weights"].items():
        assert torch.equal(second["weights"][name], weight), name


def test_it_is_logged(module, make_quiet, tmp_path):
    fit(
        module,
        make_quiet,
        TokenWeightSchedule(HALF),
        max_epochs=1,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=2,
    )
    (path,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(path.open()) if row["token_weight/instruction"]]
    found = {int(row["step"]): float(row["token_weight/instruction"]) for row in rows}
    assert found == {0: 1, 2: 1, 4: 0, 6: 0}


def test_a_point_after_the_last_step_is_said(module, make_quiet, recwarn):
    late = TokenWeightSchedule([{"at": 0, "instruction": 1.0}, {"at": 0.9, "instruction": 0.0}])
    fit(module, make_quiet, late, more=[ScheduledSampling(0.1, start=0.9)], size=4, max_epochs=1)
    said = [str(warning.message) for warning in recwarn if "never comes" in str(warning.message)]
    assert said == [
        "TokenWeightSchedule: the point at 90% never comes in this run of 4 steps",
        "ScheduledSampling: start 0.9 never comes in this run of 4 steps, so no token is replaced",
    ]


def test_what_is_refused(module, make_quiet):
    data = VLMDataModule(train=Drawn("train", size=2))
    nothing = TokenWeightSchedule(
        [{"at": 0, "response": 1.0, "box": 0.0, "entity": 0.0}, {"at": 0.5, "response": 0.0}]
    )
    with pytest.raises(UserError, match=r"points at 0\.5: .* 0 for every kind"):
        make_quiet(max_epochs=1, callbacks=[nothing]).fit(module("llava"), data)
    with pytest.raises(UserError, match="needs an end"):
        make_quiet(max_epochs=-1, callbacks=[TokenWeightSchedule()]).fit(module("llava"), data)


def test_from_a_config(folder, tmp_path, monkeypatch, capsys):
    """With scheduled sampling beside it; and a mistake is one line."""
    monkeypatch.chdir(tmp_path)
    here = "lightning_vlm.callbacks.token_weight_schedule.TokenWeightSchedule"
    sampling = "lightning_vlm.callbacks.scheduled_sampling.ScheduledSampling"
    config = {
        "model": {"name_or_path": str(folder("shipped")), "adapt": PLAN},
        "data": {
            "train": {
                "class_path": "lightning_vlm.data.drawn.Drawn",
                "init_args": {"split": "train", "size": 4},
            },
            "batch_size": 1,
        },
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs"}},
            "callbacks": [
                {"class_path": here, "init_args": {"points": HALF, "between": "smooth"}},
                {"class_path": sampling, "init_args": {"probability": 0.5, "decay": "exponential"}},
            ],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0
    (path,) = tmp_path.rglob("metrics.csv")
    rows = [float(row["token_weight/instruction"] or -1) for row in csv.DictReader(path.open())]
    assert [row for row in rows if row >= 0] == pytest.approx([1, 0.5, 0, 0], abs=1e-9)
    config["trainer"]["callbacks"][0]["init_args"]["points"] = [{"at": 0, "respones": 1.0}]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 2
    assert "points[0].respones: there is no such kind" in capsys.readouterr().err
