"""All callbacks in one run, in a project that isn't ours and in ours."""

from functools import partial

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from lightning_vlm_callbacks import (
    EarlyStopCheckpoint,
    GradientMonitor,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
)
from lightning_vlm_callbacks.run_report.history import read_history

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError

STAGES = [
    {"at": 0, "train": {"head": 1.0}},
    {"at": 6, "train": {"head": 1.0, "blocks[-1:]": 0.1}},
    {"at": 11, "train": {"*": 0.1, "head": 1.0}},
]
BAD = 9
"""The batch whose pictures are spoiled."""


def five(folder, stages=STAGES, **unfreezing):
    return [
        StagedUnfreezing(stages, unit="step", warmup_steps=2, **unfreezing),
        NonFiniteGuard(dirpath=str(folder / "nonfinite")),
        GradientMonitor(every_n_steps=1),
        RunReport(),
        EarlyStopCheckpoint(
            "val/loss", every_n_steps=3, keep_periodic=None, dirpath=str(folder / "checkpoints")
        ),
    ]


@pytest.fixture
def spoiled(digits):
    """A classifier that gets one batch with NaN in its pictures."""

    class Spoiled(digits.Classifier):
        def forward(self, pictures):
            spoil = self.training and self.trainer.fit_loop.epoch_loop.total_batch_idx == BAD
            return super().forward(pictures / 0 if spoil else pictures)

    def make():
        seed_everything(0, verbose=False)
        return Spoiled(dropout=0.2)

    return make


def everything(trainer, module):
    optimizer = trainer.optimizers[0].state_dict()["state"]
    state = {f"{index}.{key}": one for index, kept in optimizer.items() for key, one in kept.items()}
    return {**{name: one.clone() for name, one in module.state_dict().items()}, **state}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(one)), name


@pytest.fixture
def make_trainer(make_trainer):
    return partial(make_trainer, enable_checkpointing=True)


def run(make_trainer, digits, module, folder, ckpt_path=None, **options):
    trainer = make_trainer(
        max_epochs=2, callbacks=five(folder), default_root_dir=folder, gradient_clip_val=1.0, **options
    )
    trainer.fit(module, digits.Digits(), ckpt_path=ckpt_path)
    return trainer


def test_resumed_in_every_stage(make_trainer, digits, spoiled, tmp_path):
    """Behind the bad batch and before it, inside each stage: bit for bit the uninterrupted run."""
    module = spoiled()
    whole = everything(run(make_trainer, digits, module, tmp_path / "whole"), module)
    assert all(torch.isfinite(torch.as_tensor(one)).all() for one in whole.values())
    reports = list((tmp_path / "whole/nonfinite").rglob("report.md"))
    assert len(reports) == 1
    assert "isn't finite" in reports[0].read_text() or "NaN" in reports[0].read_text()
    for step in (3, 6, 9, 12, 15):
        module = spoiled()
        torch.manual_seed(5)
        file = tmp_path / f"whole/checkpoints/step-{step:08d}.ckpt"
        trainer = run(make_trainer, digits, module, tmp_path / f"from-{step}", ckpt_path=file)
        assert_equal(everything(trainer, module), whole)
    names = read_history(tmp_path / "whole/report.jsonl").curves
    rates = {name for name in names if name.startswith("lr")}
    assert rates == {"lr/head", "lr/blocks[-1:]", "lr/*", "lr/*/lowest"}
    assert (tmp_path / "whole/report/norm-of-the-gradient.png").stat().st_size > 5000


def _on_rank(make_trainer, digits, make, folder):
    module = make()
    trainer = run(
        make_trainer,
        digits,
        module,
        folder,
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=2,
        max_steps=14,
    )
    return everything(trainer, module)


def test_two_ranks_stay_equal(on_two_ranks, make_trainer, digits, spoiled, tmp_path):
    plain = type(
        "Plain", (digits.Digits,), {"__init__": lambda self: digits.Digits.__init__(self, stateful=False)}
    )
    project = type("Project", (), {"Digits": plain})
    first, second = on_two_ranks(_on_rank, make_trainer, project, spoiled, tmp_path)
    assert_equal(first, second)


def test_from_yaml_by_class_name(digits, tmp_path):
    config = {
        "seed_everything": 3,
        "model": {"width": 4, "blocks": 2},
        "data": {"size": 64},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": str(tmp_path),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path)},
            },
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "lightning_vlm_callbacks.StagedUnfreezing",
                    "init_args": {
                        "stages": [
                            {"at": 0, "train": {"head": 1.0}},
                            {"at": 0.5, "train": {"head": 1.0, "blocks[50%:]": 0.1}},
                        ]
                    },
                },
                {"class_path": "lightning_vlm_callbacks.NonFiniteGuard"},
                {"class_path": "lightning_vlm_callbacks.GradientMonitor"},
                {
                    "class_path": "lightning_vlm_callbacks.EarlyStopCheckpoint",
                    "init_args": {"monitor": "val/loss", "patience": 5},
                },
            ],
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    cli = digits.main(["fit", "--config", str(file)])
    folder = tmp_path / "lightning_logs/version_0"
    assert (folder / "checkpoints/best.ckpt").exists()
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "gradients/head/norm" in header
    assert "staged_unfreezing/stage" in header
    assert cli.trainer.global_step == 8


def test_twice_in_one_process(make_trainer, digits, spoiled, tmp_path):
    """The same callbacks start over in a second fit."""
    callbacks = five(tmp_path)
    ends = []
    for _ in range(2):
        module = spoiled()
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, default_root_dir=tmp_path)
        torch.manual_seed(0)
        trainer.fit(module, digits.Digits())
        ends.append(everything(trainer, module))
    assert_equal(*ends)


def test_in_a_vlm(make_trainer, model_folder, tmp_path):
    """The parts by their names; LoRA is what `language` means; the module clips by itself."""
    stages = [
        {"at": 0, "train": {"projector": 1.0}},
        {"at": 2, "train": {"projector": 1.0, "language": 0.5, "vision.layers[0:1]": 0.1}},
    ]
    ends = []
    for ckpt_path in (None, tmp_path / "checkpoints/step-00000003.ckpt"):
        torch.manual_seed(0)
        module = VLMModule(
            str(model_folder("llava")),
            adapt={"projector": "full", "language": {"lora": {"r": 2}}, "vision.layers[0:1]": "full"},
        )
        data = VLMDataModule(train=Drawn("train", size=10), val=Drawn("val", size=4), batch_size=2)
        folder = tmp_path if ckpt_path is None else tmp_path / "again"
        trainer = make_trainer(
            max_steps=6,
            max_epochs=3,
            callbacks=five(folder, stages),
            use_distributed_sampler=False,
            default_root_dir=folder,
            accumulate_grad_batches=2,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        ends.append(everything(trainer, module))
    assert_equal(ends[1], ends[0])


def test_what_a_later_stage_does_not_reach(make_trainer, model_folder, tmp_path):
    """LLaVA reads its tower one layer early: found at the first batch, not when the stage begins."""
    stages = [{"at": 0, "train": {"projector": 1.0}}, {"at": 2, "train": {"projector": 1.0, "vision": 0.1}}]
    module = VLMModule(str(model_folder("llava")), adapt={"projector": "full", "vision": "full"})
    trainer = make_trainer(max_steps=4, callbacks=five(tmp_path, stages)[:1], use_distributed_sampler=False)
    with pytest.raises(UserError, match=r"the loss gives them no gradient: model.*layers\.2\."):
        trainer.fit(module, VLMDataModule(train=Drawn("train", size=8), batch_size=2))
    assert trainer.global_step == 0
