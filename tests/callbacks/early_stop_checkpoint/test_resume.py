"""A resumed run continues bit for bit as if it had never stopped."""

import pytest
import torch
from lightning.pytorch import Callback

from tests.support.checkpoints import Scores, assert_same, plateau


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=30)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(
    "limit",
    [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 32}, {"max_epochs": 4, "max_steps": 28}],
    ids=str,
)
@pytest.mark.parametrize("schedule", [None, "plateau"])
def test_epoch_end(run, tmp_path, stateful, limit, schedule):
    options = {"data": {"stateful": stateful}, "trainer": limit, "keep_periodic": None}
    if schedule:
        options["module"] = {"schedule": plateau, "interval": "epoch"}
    whole, trainer, _ = run("whole", **options)
    for step in (8, 16):
        resumed, other, _ = run(
            f"resumed-{step}", ckpt_path=tmp_path / "whole" / f"step-{step:08d}.ckpt", chance=5, **options
        )
        assert_same(whole, resumed)
        assert other.current_epoch == trainer.current_epoch


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 20}], ids=str)
@pytest.mark.parametrize("schedule", [None, "plateau", "onecycle"])
def test_mid_epoch(run, tmp_path, limit, schedule, accumulate):
    options = {
        "trainer": {**limit, "accumulate_grad_batches": accumulate},
        "keep_periodic": None,
        "every_n_steps": 1,
        "data": {"size": 112 if accumulate == 1 else 160},
    }
    options["trainer"]["val_check_interval"] = 3
    if schedule:
        options["module"] = {
            "schedule": {"plateau": plateau, "onecycle": one_cycle}[schedule],
            "interval": "step",
        }
    if schedule == "plateau":
        options["trainer"]["num_sanity_val_steps"] = 0
        options["callbacks"] = [Constant()]
    whole, _, keep = run("whole", **options)
    files = sorted((tmp_path / "whole").glob("step-*.ckpt"))
    for file in files[1:9:2]:
        resumed, _, other = run(f"resumed-{file.stem}", ckpt_path=file, chance=5, **options)
        assert_same(whole, resumed)
        # No validation was left out, nor made twice.
        states = keep.state_dict(), other.state_dict()
        assert states[0]["best"] == states[1]["best"]
        assert states[0]["waited"] == states[1]["waited"]


@pytest.mark.parametrize("epochs", [-1, 3])
def test_stopped_inside_an_epoch(run, tmp_path, epochs):
    """A run that is given more steps goes on in the epoch in which it stopped."""
    options = {"monitor": None, "every_n_epochs": None}
    whole, trainer, _ = run("whole", trainer={"max_epochs": epochs, "max_steps": 20}, **options)
    run("stopped", trainer={"max_epochs": epochs, "max_steps": 11}, **options)
    resumed, other, _ = run(
        "resumed",
        ckpt_path=tmp_path / "stopped/latest.ckpt",
        chance=5,
        trainer={"max_epochs": epochs, "max_steps": 20},
        **options,
    )
    assert_same(whole, resumed)
    assert other.current_epoch == trainer.current_epoch
    assert other.fit_loop.epoch_progress == trainer.fit_loop.epoch_progress


class Constant(Callback):
    """Plateau schedules want their metric at once."""

    def on_train_batch_start(self, trainer, module, *_):
        if "val/loss" not in trainer.callback_metrics:
            trainer.callback_metrics["val/loss"] = torch.tensor(5.0)


def test_bfloat16(run, tmp_path):
    options = {"trainer": {"precision": "bf16-mixed"}, "every_n_steps": 3, "keep_periodic": None}
    whole, *_ = run("whole", **options)
    resumed, *_ = run("resumed", ckpt_path=tmp_path / "whole/step-00000012.ckpt", chance=5, **options)
    assert_same(whole, resumed)


def test_another_metric_on_resume(run, tmp_path):
    run("whole", callbacks=[Scores([3, 2, 1])], monitor="score")
    with pytest.warns(UserWarning, match=r"judged by score \(min\), now it is val/accuracy \(max\)"):
        _, _, keep = run(
            "resumed",
            monitor="val/accuracy",
            mode="max",
            ckpt_path=tmp_path / "whole/latest.ckpt",
            trainer={"max_epochs": 4},
        )
    assert 0 < keep.best_model_score <= 1


def test_loaders_that_forget_where_they_are(run):
    with pytest.warns(UserWarning, match="DataLoader, which can't resume inside one exactly"):
        run(every_n_steps=3, data={"stateful": False}, trainer={"max_epochs": 1})
