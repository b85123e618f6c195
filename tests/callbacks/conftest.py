"""A project that is not ours, and quiet Trainers for it."""

import importlib.util
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer, seed_everything


@pytest.fixture(scope="session")
def digits():
    """The module `digits`, importable by that name from here on, as in its own project."""
    spec = importlib.util.spec_from_file_location("digits", Path(__file__).with_name("digits.py"))
    module = sys.modules["digits"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def classifier(digits):
    """A classifier with the same weights each time."""

    def make(**options):
        seed_everything(0, verbose=False)
        return digits.Classifier(**options)

    return make


@pytest.fixture(scope="session")
def make_trainer(tmp_path_factory):
    """A quiet Trainer on the CPU; on two ranks inside `on_two_ranks` with `devices=2, strategy="ddp"`."""

    def make(**options):
        given = {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": tmp_path_factory.getbasetemp(),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **options,
        }
        return Trainer(**given)

    return make
