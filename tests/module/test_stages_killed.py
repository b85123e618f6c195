"""Runs in stages that are killed, and on several processes; and stages that can't be."""

import shutil
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, ModelCheckpoint
from lightning_vlm_callbacks import StagedUnfreezing
from torch.multiprocessing import ProcessExitedException

from lightning_vlm import Stage, StageData, VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import DataError, UserError
from tests.module.test_killed import Kill
from tests.support.ranks import call_on_ranks

STAGES = [
    Stage(name="align", steps=3, train=["projector"]),
    Stage(name="tune", steps=4, accumulate=2, data=StageData(train=Drawn("test", size=12), max_length=300)),
]


def run(
    module,
    make_quiet,
    folder,
    kill=None,
    resume=False,
    ranks=1,
    batch_size=2,
    stages=STAGES,
    callbacks=(),
    **more,
):
    torch.set_num_threads(1)
    torch.rand(3 if resume else 1)
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    several = {"strategy": "ddp", "devices": ranks} if ranks > 1 else {}
    kill = [] if kill is None else [Kill(kill)]
    given = {"enable_checkpointing": True, "max_epochs": -1, **several, **more}
    trainer = make_quiet(callbacks=[keep, *kill, *callbacks], **given)
    one = module("llava", adapt={"projector": "full", "language": "full"})
    data = VLMDataModule(train=Drawn("train", size=14), batch_size=batch_size)
    data.set_stages(stages)
    trainer.fit(one, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}


def test_killed_inside_each_stage_and_at_the_seam(module, make_quiet, tmp_path):
    """After batch 3 stage one is over; the second has windows of 2."""
    (expected,) = call_on_ranks(lambda: run(module, make_quiet, tmp_path / "whole"), ranks=1)
    for kill in (2, 3, 4, 6):
        folder = tmp_path / str(kill)
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            call_on_ranks(lambda: run(module, make_quiet, folder, kill=kill), ranks=1)  # noqa: B023
        (resumed,) = call_on_ranks(lambda: run(module, make_quiet, folder, resume=True), ranks=1)  # noqa: B023
        for name, weight in expected.items():
            assert torch.equal(resumed[name], weight), (kill, name)


def test_two_processes_agree_and_do_what_one_does(module, make_quiet, tmp_path):
    """And go on exactly after both were killed in the second stage, or on one with finer batches."""
    first, second = call_on_ranks(
        lambda: run(module, make_quiet, tmp_path / "two", ranks=2, batch_size=1), ranks=2
    )
    (alone,) = call_on_ranks(lambda: run(module, make_quiet, tmp_path / "one"), ranks=1)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        call_on_ranks(lambda: run(module, make_quiet, tmp_path / "k", ranks=2, batch_size=1, kill=6), ranks=2)
    shutil.copytree(tmp_path / "k", tmp_path / "finer")
    resumed, _ = call_on_ranks(
        lambda: run(module, make_quiet, tmp_path / "k", ranks=2, batch_size=1, resume=True), ranks=2
    )
    finer = [replace(stage, accumulate=2 * (stage.accumulate or 1)) for stage in STAGES]
    (split,) = call_on_ranks(
        lambda: run(module, make_quiet, tmp_path / "finer", batch_size=1, stages=finer, resume=True), ranks=1
    )
    for name, weight in first.items():
        assert torch.equal(second[name], weight), name
        assert torch.equal(resumed[name], weight), name
        assert torch.allclose(alone[name], weight, rtol=1e-4, atol=1e-5), name
        assert torch.allclose(split[name], weight, rtol=1e-4, atol=1e-5), name


def _with(**changes):
    return {"stages": [STAGES[0], replace(STAGES[1], **changes)]}


REFUSED = {
    "a missing file": (_with(data=StageData(train="gone.jsonl")), DataError, "gone.jsonl.*no such file"),
    "nothing fits": (_with(data=StageData(max_length=3)), UserError, "stages.tune: training data: all of"),
    "a selector": (_with(train=["visoin"]), ValueError, "visoin"),
    "what is frozen": (_with(train=["vision"]), Exception, r"stages\[1\].*frozen by the module"),
    "a rate of what is frozen": (
        {"stages": [replace(STAGES[0], learning_rates={"language": 1.0})]},
        UserError,
        "stages.align.learning_rates: found language",
    ),
    "a task": (_with(task_weights={"captoin": 2.0}), UserError, "captoin.*caption"),
    "batches": (_with(data=StageData(batching="packed")), UserError, "stages.tune: .*needs data.max_tokens"),
    "two of a name": ({"stages": [STAGES[0], STAGES[0]]}, UserError, "2 with the name align"),
    "no stage": ({"stages": []}, UserError, "at least one stage"),
    "epochs": ({"max_epochs": 3}, UserError, "found trainer.max_epochs 3; leave it out"),
    "a share": ({"limit_train_batches": 0.5}, UserError, "limit_train_batches 0.5"),
    "another unfreezing": (
        {"callbacks": [StagedUnfreezing([{"at": 0, "train": {"projector": 1.0}}])]},
        UserError,
        "found StagedUnfreezing beside them",
    ),
    "another accumulation": ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, UserError, "accumulate"),
    "another batch": ({"callbacks": [BatchSizeFinder()]}, UserError, "data.batch_size in each stage"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(module, make_quiet, tmp_path, case):
    options, kind, words = case
    with pytest.raises(kind, match=words) as error:
        run(module, make_quiet, tmp_path, **options)
    assert str(error.value).count("\n") < 3 or kind is DataError


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "found neither of steps and epochs"),
        ({"steps": 1, "epochs": 1}, "found both"),
        ({"steps": 0}, "stages.a.steps: found 0"),
        ({"steps": 1, "learning_rate": -1.0}, "learning_rate -1.0"),
        ({"steps": 1, "scores": ["anlz"]}, "stages.a: .*anlz"),
    ],
)
def test_a_stage_alone_is_refused(keys, words):
    with pytest.raises(UserError, match=words):
        Stage(name="a", **keys)


def test_an_earlier_stage_has_changed(module, make_quiet, tmp_path):
    run(module, make_quiet, tmp_path, max_steps=5)
    with pytest.raises(UserError, match="checkpoint is of tune, which began at step 3"):
        run(module, make_quiet, tmp_path, resume=True, stages=[replace(STAGES[0], steps=2), STAGES[1]])
