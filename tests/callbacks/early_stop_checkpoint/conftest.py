"""Runs of the digits project that save checkpoints."""

import random

import pytest
import torch
from lightning_vlm_callbacks import EarlyStopCheckpoint

from tests.support.checkpoints import everything_of


@pytest.fixture
def run(digits, classifier, make_trainer, tmp_path):
    """A run of the digits project: its end, its Trainer and its callback."""

    def fit(
        name="run", ckpt_path=None, callbacks=(), data=None, module=None, chance=0, trainer=None, **options
    ):
        options = {"monitor": "val/loss", "dirpath": str(tmp_path / name), **options}
        keep = EarlyStopCheckpoint(**options)
        given = {"max_epochs": 3, **(trainer or {})}
        made = make_trainer(callbacks=[*callbacks, keep], enable_checkpointing=True, **given)
        data = digits.Digits(**{"size": 128, **(data or {})})
        one = classifier(**{"dropout": 0.3, **(module or {})})
        if chance:  # chance stands elsewhere in a new process
            torch.manual_seed(chance)
            random.seed(chance)
        made.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        return everything_of(made, one), made, keep

    return fit
