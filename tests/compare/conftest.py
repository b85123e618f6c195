"""A short run of the shipped model, and what is compared with it."""

import json
import os

import pytest

from lightning_vlm.cli import main
from tests.support.comparisons import CHECKPOINT, colour_of, warm, write_samples


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with data, and the run of a fit on it: `runs/version_0`."""
    folder = tmp_path_factory.mktemp("compare")
    write_samples(folder, "train", 48, warm)
    write_samples(folder, "val", 24, warm)
    write_samples(folder, "general", 24, colour_of)
    words = {
        "model.name_or_path": "drawn-vlm",
        "model.adapt": "{projector: full, language: {lora: {r: 8}}}",
        "model.optimizer": "{class_path: torch.optim.AdamW, init_args: {lr: 2.0e-3}}",
        "model.generation": "{max_new_tokens: 6}",
        "data.train": "train.jsonl",
        "data.val": "val.jsonl",
        "data.batch_size": 16,
        "trainer.max_steps": 20,
        "trainer.limit_val_batches": 0,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "{class_path: lightning.pytorch.loggers.CSVLogger, "
        "init_args: {save_dir: ., name: runs}}",
        "trainer.callbacks": "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {filename: last}}]",
    }
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["fit", *(f"--{key}={value}" for key, value in words.items())]) == 0
        compared = [CHECKPOINT, "--data", "val", "general=general.jsonl"]
        assert main(["compare", *compared, "--json", "both.json", "--answers", "kept"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    """The same, as the working directory."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def compared(folder):
    """Run the command; what it found."""

    def run(*words):
        assert main(["compare", *words, "--json", "found.json"]) == 0
        return json.loads((folder / "found.json").read_text())

    return run
