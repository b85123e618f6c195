"""Packages that aren't installed, a port in use, and memory that runs out: what a person reads."""

import json
import shlex
import socket
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from lightning_vlm.cli import main

FIT = (
    "fit --data.batch_size 2 --trainer.max_steps 1 --trainer.logger false --trainer.accelerator cpu "
    "--trainer.enable_checkpointing false --trainer.enable_progress_bar false"
)
DRAWN = "--data.train Drawn --data.train.size 4"
SHIPPED = "--model.name_or_path drawn-vlm"


@pytest.fixture
def without(monkeypatch):
    """Hide a package, as if it weren't installed."""

    def hide(package):
        class Hidden(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == package:
                    raise ModuleNotFoundError(f"No module named '{name}'", name=name)

        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])

    return hide


def refused(capsys, *words):
    """The message of a fit that fails, of at most three lines."""
    assert main([*FIT.split(), *words]) == 2
    message = capsys.readouterr().err.partition("lightning-vlm: error: ")[2].strip()
    assert len(message.splitlines()) <= 3
    assert "Traceback" not in message
    return message


PACKAGES = {
    "wandb": (f"{SHIPPED} {DRAWN} --trainer.logger WandbLogger", "pip install wandb"),
    **{
        tracker: (f"{SHIPPED} {DRAWN} --config track/{tracker}", f"pip install 'lightning-vlm[{tracker}]'")
        for tracker in ("tensorboard", "mlflow", "trackio")
    },
    "datasets": (
        f"{SHIPPED} --data.train HFDataset --data.train.path a/b",
        "pip install 'lightning-vlm[datasets]'",
    ),
    "easy_vqa": (f"{SHIPPED} --data.train EasyVQA", "pip install easy-vqa"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, without, capsys, package):
    words, expected = PACKAGES[package]
    monkeypatch.chdir(tmp_path)
    without(package)
    assert expected in refused(capsys, *words.split())


def test_a_port_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        ddp = "--trainer.strategy ddp --trainer.devices 1"
        message = refused(capsys, *f"{SHIPPED} {DRAWN} {ddp}".split())
    assert message.startswith("the network port is in use")
    assert "MASTER_PORT=" in message


GREEDY = """
import torch
from lightning.pytorch import Callback
class Greedy(Callback):
    def on_before_optimizer_step(self, *_):
        torch.empty(1 << 50, dtype=torch.uint8)
"""


def test_memory_that_runs_out_leads_to_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("greedy.py").write_text(GREEDY)
    config = {
        "model": {"name_or_path": "drawn-vlm"},
        "data": {"train": {"class_path": "Drawn", "init_args": {"size": 4}}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "callbacks": [{"class_path": "greedy.Greedy"}]},
    }
    Path("c.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", "c.yaml", "--trainer.logger", "false"]) == 2
    message = capsys.readouterr().err.partition("lightning-vlm: error: ")[2].strip()
    assert len(message.splitlines()) == 3
    assert message.startswith("out of memory on the CPU (1,125,899.9 GB more were asked for)")
    advice = shlex.split(message.splitlines()[-1].partition("; ")[2].partition("lightning-vlm ")[2])
    assert advice[:1] == ["plan"]
    assert advice[-3:] == ["says", "what", "fits"]
    assert main([*advice[:-3], "--compare", "false", "--memory", "8GiB"]) == 0
