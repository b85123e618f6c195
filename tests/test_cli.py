import json
import os
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml

from lightning_vlm.cli import main
from lightning_vlm.models import shipped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(shipped.create(tmp_path_factory.mktemp("base")))


@pytest.fixture
def project(tmp_path, monkeypatch, base):
    """A folder with a data file, a picture and a config, to work in."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (40, 30), "red").save("cat.png")
    ask = {
        "role": "user",
        "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What?"}],
    }
    lines = [
        {"messages": [ask, {"role": "assistant", "content": f"cat {n}"}], "task": "vqa"} for n in range(6)
    ]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = {
        "model": {
            "name_or_path": base,
            "adapt": {"projector": "full", "language": {"lora": {"r": 2}}},
            "generation": {"max_new_tokens": 2},
        },
        "data": {
            **dict.fromkeys(("train", "val", "test", "predict"), "data.jsonl"),
            "batch_size": 2,
        },
        "trainer": {
            "max_steps": 2,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs"},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": "runs", "filename": "last", "enable_version_counter": False},
                }
            ],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def command(*words):
    return main([*words[:1], "--config", "config.yaml", *words[1:]])


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom lightning_vlm.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'wandb', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 2
    assert "lightning-vlm COMMAND --config FILE" in done.stdout
    from lightning_vlm.run import VLMCLI

    listed = done.stdout.split("commands:")[1].split("options:")[0].strip().splitlines()
    assert {line.split()[0] for line in listed} == {*VLMCLI.subcommands(), "export"}


def test_version_no_command_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert main(["fti"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err


def test_fit_validate_test_predict_and_fit_again(project, capsys):
    assert command("fit") == 0
    assert Path("runs/last.ckpt").is_file()
    for name in ("validate", "test", "predict"):
        assert command(name, "--ckpt_path", "runs/last.ckpt") == 0
    shown = capsys.readouterr().out
    for score in ("val/exact_match", "test/perplexity"):
        assert score in shown
    saved = yaml.safe_load(Path("runs/lightning_logs/version_0/config.yaml").read_text())
    assert saved["data"]["train"] == "data.jsonl"
    assert command("fit") == 0  # a second run in the same folder


def test_the_command_line_beats_the_checkpoint(project, capsys):
    assert command("fit") == 0
    assert command("test", "--ckpt_path", "runs/last.ckpt", "--model.token_weights.response", "3") == 0
    first = capsys.readouterr().out
    assert "test/loss" in first
    # what can't hold together is an error that names it
    assert (
        command("test", "--ckpt_path", "runs/last.ckpt", "--model.adapt", "{language: {lora: {r: 4}}}") == 2
    )
    told = capsys.readouterr().err
    assert "model.adapt" in told
    assert "lora_A" in told or "projector" in told


def test_configs_compose(project):
    extra = {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}}
    Path("extra.yaml").write_text(yaml.safe_dump(extra))
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from lightning_vlm.run import run

    done = run(["fit", "--config", "config.yaml", "--config", "extra.yaml", "--trainer.max_steps", "1"])
    kinds = [type(one) for one in done.trainer.callbacks]
    assert LearningRateMonitor in kinds
    assert ModelCheckpoint in kinds


def test_weights_and_biases_gets_the_config(project):
    logger = "{class_path: WandbLogger, init_args: {save_dir: wb, offline: true, project: test}}"
    assert command("fit", "--trainer.logger", logger, "--trainer.max_steps", "1") == 0
    import wandb

    config = dict(wandb.run.config)
    wandb.finish()
    assert config["cli"]["data"]["train"] == "data.jsonl"
    assert list(Path("wb").rglob("*.wandb"))


def test_debug_shows_the_traceback(project):
    from lightning_vlm.errors import UserError

    with pytest.raises(UserError):
        command("fit", "--trainer.gradient_clip_val", "1.0", "--debug")


def test_a_bad_line_names_file_and_line(project, capsys):
    with Path("data.jsonl").open("a") as file:
        file.write('\n{"mesages": []}')
    assert command("fit") == 2
    assert "data.jsonl:7" in capsys.readouterr().err
    assert command("fit", "--data.on_bad_sample", "skip") == 0
    reports = list(Path("runs").rglob("left_out_*.jsonl"))
    assert len(reports) == 1
    assert "data.jsonl:7" in reports[0].read_text()


def test_report(project, capsys):
    assert command("fit", "--report", "true") == 0
    shown = capsys.readouterr().out
    for word in (
        "before",
        "after",
        "most frequent answer",
        "tokens per second",
        "last.ckpt",
        "predictions.png",
    ):
        assert word in shown
    (picture,) = Path("runs").rglob("predictions.png")
    assert PIL.Image.open(picture).size[0] > 300


def test_checkpoints_load_without_pickled_code(project):
    assert command("fit") == 0
    saved = torch.load("runs/last.ckpt", weights_only=True)
    assert os.path.getsize("runs/last.ckpt") < 3_000_000
    assert all("lora_" in name or "projector" in name for name in saved["state_dict"])
