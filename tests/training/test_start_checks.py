"""What is checked before a fit: shown in a line each, and refused before anything has begun."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from lightning_vlm.cli import main
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Cosine, parameter_groups
from lightning_vlm.training.start_checks.check import as_table
from lightning_vlm.training.start_checks.context import SampleSize, check_context
from lightning_vlm.training.start_checks.found import Found
from lightning_vlm.training.start_checks.places import check_folders, check_mlflow, check_servers
from lightning_vlm.training.start_checks.rates import Trained, check_rates, trained_of
from lightning_vlm.training.start_checks.settings import check_clipping, check_precision, check_warmup

FIT = (
    "fit --model.name_or_path drawn-vlm --data.train Drawn --data.train.size 8 --data.batch_size 4 "
    "--trainer.max_steps 1 --trainer.accelerator cpu"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def fit(*words):
    return main([*FIT.split(), *words])


def test_a_sound_fit_shows_what_was_checked(here, capsys):
    """All that docs/start-checks.md shows and names."""
    logger = "--trainer.logger WandbLogger --trainer.logger.save_dir runs --trainer.logger.offline true"
    keeper = "[{class_path: EarlyStopCheckpoint, init_args: {monitor: val/loss}}]"
    words = f"{logger} --data.val Drawn --data.val.size 4 --data.train.size 4".split()
    assert fit(*words, "--trainer.callbacks", keeper) == 0
    wandb.finish()
    shown = capsys.readouterr().out
    block = shown.partition("Before training")[2].partition("┏")[0].splitlines()[1:]
    page = (Path(__file__).parents[2] / "docs/start-checks.md").read_text()
    names = re.findall(r"^(?:ok|change) +(\S+(?: \S+)?)  ", page, re.MULTILINE)
    assert len(names) == 7
    checked = [line[4:19].strip() for line in block if line.startswith("ok")]
    assert sorted(checked) == sorted([*names, "validation", "W&B"])
    assert "runs can be written" in shown
    assert "change" not in "".join(block)
    assert max(map(len, block)) <= 80


def test_what_should_be_changed_stands_out_and_is_all_that_is_shown_without_a_bar(here, capsys):
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert fit(*quiet, "--model.clip", "null") == 0
    block = capsys.readouterr().out.partition("Before training")[2].partition("┏")[0]
    assert [line.split()[:2] for line in block.splitlines() if line.startswith(("ok", "change"))] == [
        ["change", "clipping"]
    ]
    assert fit(*quiet) == 0
    assert "Before training" not in capsys.readouterr().out


REFUSED = {
    "folder": (
        ["--trainer.logger.save_dir", "file/runs"],
        "found a file where a folder is needed at file, for this run's files",
    ),
    "validation": (
        ["--trainer.callbacks", "[{class_path: EarlyStopCheckpoint, init_args: {monitor: val/loss}}]"],
        "data.val: found nothing to validate on, and EarlyStopCheckpoint waits for val/loss",
    ),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_a_run_of_a_logger_begins(here, capsys, words, message):
    Path("file").write_text("")
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true"]
    assert fit(*logger, *words) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert len(found.err.splitlines()) <= 3
    assert wandb.run is None
    assert not Path("wandb").exists()
    assert "language" not in found.out  # no table of what trains: no model was loaded


def test_each_stage_has_its_rate(here, capsys):
    def stage(name, **keys):
        return {
            "name": name,
            "steps": 1,
            "data": {"train": {"class_path": "Drawn", "init_args": {"size": 4}}},
        } | keys

    stages = [stage("align", train=["projector"], learning_rate=1e-3), stage("instruct", learning_rate=1e-9)]
    Path("stages.yaml").write_text(json.dumps({"stages": stages, "model": {"name_or_path": "drawn-vlm"}}))
    words = "fit --config stages.yaml --trainer.accelerator cpu --trainer.logger false --data.batch_size 2"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "ok      rate of align     0.001 for whole weights\n" in re.sub(" +\n", "\n", shown)
    assert "change  rate of instruct  1e-9 for adapters changes next to nothing" in shown


def test_a_full_disk(here):
    trainer = Trainer(default_root_dir=here, logger=False, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(UserError, match="free some space"):
        list(check_folders(trainer, 10**18))
    assert [found.is_fine for found in check_folders(trainer, 1000)] == [True, True]


@pytest.fixture
def wandb_finds(monkeypatch, tmp_path):
    """What is found of Weights & Biases with these environment variables, and nothing else."""
    logger = WandbLogger(save_dir=tmp_path)
    trainer = Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def find(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # it keeps the settings of before
        try:
            (found,) = check_servers(trainer)
        except UserError as error:
            return str(error)
        finally:
            wandb.teardown()
        return found

    return find


def test_weights_and_biases(wandb_finds, tmp_path):
    """What can't work is refused: wandb would ask for a login in a terminal, and try a server for minutes."""
    netrc = tmp_path / "netrc"
    for machine in ("other", "api.wandb.ai"):
        netrc.write_text(f"machine {machine} login user password {'0' * 40}")
        found = str(wandb_finds())  # with a network the login is taken, without one it isn't asked for
        assert ("no login" in found) == (machine == "other"), found
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "found no login on this machine; run wandb login" in wandb_finds(WANDB_BASE_URL=here)
        netrc.write_text("machine 127.0.0.1 login user password secret")
        assert wandb_finds() == Found("W&B", "127.0.0.1 is reached, with a login")
    assert wandb_finds().startswith("Weights & Biases: 127.0.0.1 can't be reached\nset WANDB_MODE=offline")
    assert wandb_finds(WANDB_MODE="offline") == Found("W&B", "offline (WANDB_MODE)")


def test_a_server_of_mlflow(monkeypatch):
    """MLflow itself tries one that isn't there for minutes."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert check_mlflow(here) == Found("MLflow", "127.0.0.1 is reached")
    with pytest.raises(UserError, match="can't be reached; check the logger's tracking_uri"):
        check_mlflow(here)


@pytest.mark.parametrize(
    ("how", "rate", "trains", "size", "is_fine"),
    [
        ("adapters", 2e-4, 40e6, 7e9, True),
        ("adapters", 5e-4, 1e6, 256e6, True),
        ("adapters", 2e-5, 40e6, 7e9, False),
        ("adapters", 5e-3, 40e6, 7e9, False),
        ("adapters", 2e-3, 2e5, 2.5e6, True),  # the shipped model
        ("whole weights", 2e-5, 7e9, 7e9, True),
        ("whole weights", 2e-7, 3e9, 3e9, True),  # Qwen's own
        ("whole weights", 2e-4, 7e9, 7e9, False),  # the rate of adapters
        ("whole weights", 2e-4, 256e6, 256e6, True),
        ("whole weights", 1e-3, 20e6, 7e9, True),  # LLaVA's projector
        ("whole weights", 2e-3, 2.5e6, 2.5e6, True),
        ("whole weights", 1e-9, 2.5e6, 2.5e6, False),
        ("whole weights", 1.0, 2.5e6, 2.5e6, False),
    ],
)
def test_rates(how, rate, trains, size, is_fine):
    found = check_rates([Trained(how, rate, int(trains))], int(size))
    assert found.is_fine == is_fine, found


def test_rates_are_those_of_the_groups():
    root = nn.ModuleDict({"tower": nn.Linear(4, 4), "lora_A": nn.Linear(2, 2, bias=False)})
    groups = parameter_groups(root, 1e-4, 0.1, {"tower": 1e-5})
    assert trained_of(groups, root) == [Trained("whole weights", 1e-5, 20), Trained("adapters", 1e-4, 4)]


def test_context_beyond_the_model():
    texts = [
        next(check_context([SampleSize(900, 600)], *limits))
        for limits in ((None, 512), (1024, 512), (512, 4096), (700, 4096), (1024, 4096), (None, None))
    ]
    assert [found.is_fine for found in texts] == [False, False, False, False, True, True]
    assert "data.max_length" in texts[0].text
    assert list(check_context([], 512, 512)) == []


def test_settings():
    assert [found.is_fine for found in check_warmup(Cosine(warmup=0.5))] == [False]
    assert list(check_warmup(object())) == []
    assert not check_clipping(100.0).is_fine
    trainer = Trainer(accelerator="cpu", precision="16-true", logger=False, enable_progress_bar=False)
    assert "bf16-mixed or 32-true" in check_precision(trainer).text
    if torch.cuda.is_available():
        trainer = Trainer(accelerator="gpu", devices=1, precision="bf16-mixed", logger=False)
        assert check_precision(trainer).is_fine == torch.cuda.is_bf16_supported(including_emulation=False)


def test_the_table_has_no_markup():
    assert as_table([Found("folder", "[red]x[/red]", is_fine=False)]).columns[2]._cells[0].plain == (
        "[red]x[/red]"
    )
