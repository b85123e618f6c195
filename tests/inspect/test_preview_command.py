"""The command `preview`."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_vlm.cli import main
from lightning_vlm.models.loading.load import SHIPPED
from tests.inspect.samples import END, Reader


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a data file and a model that has no weights at all."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED["drawn-vlm"], "model", ignore=shutil.ignore_patterns("*.safetensors"))
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    Path("data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 3))
    config = {
        "model": {"name_or_path": "model", "token_weights": {"response": 3.0}},
        "data": {"train": "data.jsonl", "max_length": 64},
        "trainer": {
            # Nothing of this is here, and a preview asks for none of it.
            "accelerator": "gpu",
            "devices": 8,
            "strategy": "fsdp",
            "logger": {"class_path": "WandbLogger", "init_args": {"project": "x"}},
        },
        "ckpt_path": None,  # as in the saved config of a run
        "weights_only": None,
        "report": True,
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def command(*words):
    return main(["preview", "--config", "config.yaml", *words])


def test_the_command_needs_no_weights_no_gpu_and_no_logger(project, capsys):
    assert command("--samples", "2", "--scan", "2", "--out", "pages/one.html") == 0
    shown = capsys.readouterr()
    assert f"⟦That.{END}⟧×3" in shown.out
    assert "2 of 3 samples" in shown.out
    assert "pages/one.html" in shown.out
    assert "Traceback" not in shown.err
    read = Reader(Path("pages/one.html").read_text("utf-8"))
    assert len(read.texts) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "data.jsonl", "model", "pages"]


@pytest.mark.parametrize("progress", ["0", "0.5", "1"])
@pytest.mark.parametrize("several", [True, False])
def test_the_command_shows_weights_at_any_progress(project, capsys, progress, several):
    """Of all callbacks only the schedule is made: the other one could not be."""
    schedule = {"class_path": "TokenWeightSchedule", "init_args": {"between": "linear"}}
    schedule["init_args"]["points"] = [{"at": 0, "instruction": 1.0}, {"at": 1, "instruction": 0.0}]
    other = {"class_path": "ModelCheckpoint", "init_args": {"mode": "no such mode"}}
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["trainer"]["callbacks"] = [other, schedule] if several else schedule
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("--progress", progress) == 0
    shown = capsys.readouterr().out
    assert f"⟦That.{END}⟧×3" in shown
    assert re.findall(r"⟦What\?⟧(×[\d.]+)?", shown) == {"0": [""], "0.5": ["×0.5"], "1": []}[progress] * 3
    assert "instruction goes linearly: 1 at 0%, 0 at 100%" in shown


def test_the_quickstart_can_be_previewed(project, capsys):
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    assert main(["preview", "--config", str(config), "--scan", "10", "--model.name_or_path", "model"]) == 0
    assert "10 of 37,575 samples" in capsys.readouterr().out
    assert len(Reader(Path("preview.html").read_text("utf-8")).pictures) == 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.train", "null"], "data.train is not set"),
        (["--samples", "-1"], "samples -1"),
        (["--progress", "50"], "progress: found 50"),
        (["--out", "data.jsonl/page.html"], "data.jsonl/page.html"),
    ],
)
def test_mistakes_are_reported_in_one_line(project, capsys, words, expected):
    try:
        code = command(*words)
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_a_bad_line_is_named_or_counted(project, capsys):
    with Path("data.jsonl").open("a") as file:
        file.write('\n{"mesages": []}')
    assert command() == 2
    assert "data.jsonl:4" in capsys.readouterr().err
    assert command("--data.on_bad_sample", "skip") == 0
    assert "Left out when the data was opened: 1 of all" in capsys.readouterr().out
