"""A project that is not ours, quiet Trainers for it, and two processes."""

import importlib.util
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.multiprocessing import start_processes


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


def _rank(rank, port, function, folder, arguments):
    torch.set_num_threads(1)
    os.environ.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")


@pytest.fixture(scope="session")
def on_two_ranks(tmp_path_factory):
    """Call a function in two processes; a list of what each returned (primitives and tensors).

    They are forked, so that nothing is imported again and closures need no pickling.
    """

    def call(function, *arguments):
        folder = tmp_path_factory.mktemp("ranks")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start_processes(_rank, (port, function, folder, arguments), nprocs=2, start_method="fork")
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]

    return call
