"""A real offline run of Weights & Biases whose file is whole, and the same file as a full disk leaves it."""

from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_vlm.outputs.wandb_file import has_end, say_if_cut


@pytest.fixture(scope="module")
def logger(tmp_path_factory):
    """Of a run that has logged more than a block and has ended."""
    folder = tmp_path_factory.mktemp("wandb")
    logger = WandbLogger(save_dir=folder, offline=True, project="p", settings=wandb.Settings(silent=True))
    for step in range(150):
        logger.log_metrics({f"curve{number}": step * number for number in range(40)}, step)
    logger.experiment.finish()
    return logger


@pytest.fixture
def file(logger):
    """The run's file, which a test may change."""
    (found,) = Path(logger.save_dir).rglob("run-*.wandb")
    content = found.read_bytes()
    assert len(content) > 100_000
    yield found
    found.write_bytes(content)


def test_whole(file):
    assert has_end(file)


@pytest.mark.parametrize("lost", [1, 5_000, 40_000, 90_000])
def test_cut(lost, file, tmp_path):
    short = tmp_path / file.name
    short.write_bytes(file.read_bytes()[:-lost])
    assert not has_end(short)


@pytest.mark.parametrize("cut", [False, True])
def test_it_is_said(cut, logger, file, capsys):
    if cut:
        file.write_bytes(file.read_bytes()[:-5_000])
    say_if_cut(logger)
    said = capsys.readouterr().err
    warning = f"warning: Weights & Biases: {file} has no end, as where the disk was full; what was logged"
    assert said.startswith(warning) if cut else said == ""
