"""Runs that log at no step train as those that log at each."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_vlm import VLMDataModule
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule

PLAN = {"language": {"lora": {"r": 4}}}


@pytest.fixture(scope="module")
def run(module, listed, words):
    samples = listed([words(answer="Red. " * (1 + at), task="ab"[at % 2]) for at in range(6)])

    def make(tmp_path, **options):
        points = [{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.0}]
        callbacks = [ScheduledSampling(0.5, "constant"), TokenWeightSchedule(points)]
        trainer = Trainer(
            accelerator="cpu", max_steps=3, callbacks=callbacks, default_root_dir=tmp_path, **options
        )
        one = module("llava", adapt=PLAN, task_weights="inverse_initial_loss")
        data = VLMDataModule(train=samples, val=samples, batch_size=2, sampling="uniform")
        trainer.fit(one, data)
        return {name: weight.detach() for name, weight in one.named_parameters()}, trainer

    return make


@pytest.fixture(scope="module")
def logged(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    return run(folder, logger=CSVLogger(folder), log_every_n_steps=1, enable_checkpointing=False)[0]


UNLOGGED = {
    "0": {"log_every_n_steps": 0, "logger": False, "enable_checkpointing": False},
    "0 with a logger": {"log_every_n_steps": 0, "enable_checkpointing": False},
    "barebones": {"barebones": True},
}


@pytest.mark.parametrize("case", UNLOGGED)
def test_trains_alike(run, logged, tmp_path, case):
    options = dict(UNLOGGED[case])
    if "with" in case:
        options["logger"] = CSVLogger(tmp_path)
    weights, trainer = run(tmp_path, **options)
    assert trainer.global_step == 3
    for name, weight in logged.items():
        assert torch.equal(weights[name], weight), name
    for file in tmp_path.rglob("metrics.csv"):
        assert "train" not in file.read_text()
