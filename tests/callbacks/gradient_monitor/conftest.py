"""Short runs of a plain module."""

import pytest
from lightning_vlm_callbacks.gradient_monitor import rules
from torch.utils.data import DataLoader

from tests.callbacks.gradient_monitor.support import Kept, Plain


@pytest.fixture(scope="module")
def samples(digits):
    return digits.Digits(24).train


@pytest.fixture
def fit(make_trainer, digits, tmp_path):
    """Train `Plain`, or a module, on batches of 8 for some steps; its trainer, whose logger kept all."""

    def make(callbacks, module=None, steps=6, data=None, ckpt_path=None, **options):
        given = {"logger": Kept(), "max_steps": steps, "max_epochs": None, "default_root_dir": tmp_path}
        trainer = make_trainer(callbacks=callbacks, **{**given, **options})
        data = data or DataLoader(digits.Digits(24).train, 8)
        trainer.fit(module or Plain(), data, ckpt_path=ckpt_path)
        return trainer

    return make


@pytest.fixture
def dead_after(monkeypatch):
    """Sets after how many norms without a gradient a group is dead, so that short runs have such."""
    return lambda steps: monkeypatch.setattr(rules, "DEAD_AFTER", steps)
