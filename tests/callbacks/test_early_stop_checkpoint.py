"""EarlyStopCheckpoint."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning_vlm_callbacks import EarlyStopCheckpoint


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def everything_of(trainer, module):
    """Weights, statistics, optimizer and schedules after a run."""
    state = {"model": module.state_dict(), "optimizers": [one.state_dict() for one in trainer.optimizers]}
    state["schedules"] = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]
    return tensors_and_numbers(state)


def tensors_and_numbers(value, path=""):
    if isinstance(value, dict):
        return {
            k: v for key, one in value.items() for k, v in tensors_and_numbers(one, f"{path}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return tensors_and_numbers(dict(enumerate(value)), path)
    return {path: value.clone() if isinstance(value, torch.Tensor) else value}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


@pytest.fixture
def run(digits, classifier, make_trainer, tmp_path):
    """A run of the digits project: its end, its Trainer and its callback."""

    def fit(
        name="run", ckpt_path=None, callbacks=(), data=None, module=None, chance=0, trainer=None, **options
    ):
        options = {"monitor": "val/loss", "dirpath": str(tmp_path / name), "picture": False, **options}
        keep = EarlyStopCheckpoint(**options)
        given = {"max_epochs": 3, **(trainer or {})}
        made = make_trainer(callbacks=[*callbacks, keep], enable_checkpointing=True, **given)
        data = digits.Digits(**{"size": 128, **(data or {})})
        one = classifier(**{"dropout": 0.3, **(module or {})})
        if chance:  # chance stands elsewhere in a new process
            seed_everything(chance, verbose=False)
        made.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        return everything_of(made, one), made, keep

    return fit


def plateau(optimizer):
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
    return schedule(optimizer, patience=0, factor=0.5, threshold=0.2)


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
    whole, *_ = run("whole", **options)
    for step in (8, 16):
        resumed, *_ = run(
            f"resumed-{step}", ckpt_path=tmp_path / "whole" / f"step-{step:08d}.ckpt", chance=5, **options
        )
        assert_same(whole, resumed)


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
    whole, *_ = run("whole", **options)
    files = sorted((tmp_path / "whole").glob("step-*.ckpt"))
    for file in files[:10]:
        resumed, *_ = run(f"resumed-{file.stem}", ckpt_path=file, chance=5, **options)
        assert_same(whole, resumed)


class Constant(Callback):
    """Plateau schedules want their metric at once."""

    def on_train_batch_start(self, trainer, module, *_):
        if "val/loss" not in trainer.callback_metrics:
            trainer.callback_metrics["val/loss"] = torch.tensor(5.0)
