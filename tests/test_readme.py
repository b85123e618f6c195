"""Every snippet and command of the two READMEs, as printed, on the model inside the package."""

import io
import json
import os
import re
import shlex
import subprocess
import warnings
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_vlm.cli import COMMANDS, main
from lightning_vlm.compat import quiet

# A run of two steps is too short for much of what they ask for, and says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*would begin at step"),
    pytest.mark.filterwarnings("ignore:.*never comes in this run"),
    pytest.mark.filterwarnings("ignore:.*stops nothing in this run"),
    pytest.mark.filterwarnings("ignore:.*longer than this run"),
]
ROOT = Path(__file__).parent.parent
FEW = (
    "--model.name_or_path",
    "drawn-vlm",
    "--trainer.max_steps",
    "2",
    "--trainer.enable_progress_bar",
    "false",
)


def blocks(readme, language):
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$", (ROOT / readme).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [text for found, text in fenced if found == language]


YAML = blocks("README.md", "yaml")
COMMAND_LINES = [
    line.split("#")[0].strip()
    for block in blocks("README.md", "")
    for line in block.splitlines()
    if line.startswith("lightning-vlm")
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """What the README takes for granted: `my.yaml`, its data, and questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    PIL.Image.new("RGB", (64, 48), "red").save("cat.jpg")
    PIL.Image.new("RGB", (300, 200), "gray").save("street.jpg")
    sample, with_box = blocks("README.md", "json")
    lines = [json.dumps({**json.loads(sample), "task": task}) for task in ("vqa", "ocr") for _ in range(15)]
    # Two steps of 8 batches of 2 are an epoch, behind which there is a validation.
    boxes = [json.dumps({**json.loads(with_box), "task": "grounding"})] * 2
    Path("train.jsonl").write_text("\n".join([*lines, *boxes]))
    Path("val.jsonl").write_text("\n".join([*lines[14:17], *boxes[:1]]))
    question = {"messages": json.loads(sample)["messages"][:1]}
    Path("questions.jsonl").write_text("\n".join([json.dumps(question)] * 3))
    Path("my.yaml").write_text(YAML[0])
    return tmp_path


def finish_wandb():
    import wandb

    wandb.finish()
    wandb.teardown()  # Its process takes relative folders from where it began.


def test_the_commands(project, capsys, monkeypatch):
    assert {shlex.split(line)[1] for line in COMMAND_LINES} == {*COMMANDS} - {"test", "migrate"}
    checkpoint = None
    for line in COMMAND_LINES:
        words = shlex.split(line)[1:]
        if "configs/quickstart.yaml" in words:
            assert (ROOT / "configs" / "quickstart.yaml").is_file()  # test_configs.py runs it
            continue
        if words[0] == "export":
            from lightning_vlm.export.command import parser

            parser().parse_args(words[1:])  # tests/export runs it
            continue
        words = [checkpoint if word == "CHECKPOINT" else word for word in words]
        if words[0] == "init":
            Path("my.yaml").rename("that of the README")
            words += ["--model", "drawn-vlm"]
        elif words[0] not in ("compare", "chat", "families", "recipes"):
            words += FEW
        if words[0] == "plan":  # its table of eight methods is tested in tests/planning
            words += ["--compare", "false"]
        if "models/qwen2.5-vl-3b" in words:
            words += ["--data.max_pixels", "null"]  # drawn-vlm sees all pictures in one size
        monkeypatch.setattr("sys.stdin", io.StringIO("What is this? cat.jpg\n"))
        assert main(words) == 0, line
        shown = capsys.readouterr().out
        finish_wandb()
        _check(words[0], shown)
        if words[0] == "init":
            Path("that of the README").replace("my.yaml")
        elif words[0] == "fit" and checkpoint is None:
            checkpoint = re.search(r"^checkpoint +(\S+)", shown, re.MULTILINE)[1]
            assert Path(checkpoint).is_file()


def _check(command, shown):
    """What a command of the README shows."""
    if command == "init":
        assert yaml.safe_load(Path("my.yaml").read_text())["data"]["train"] == "train.jsonl"
    elif command == "validate":
        assert "Validation: 4 samples" in shown
    elif command == "predict":
        answers = re.search(r"^answers +3 in (\S+)", shown, re.MULTILINE)[1]
        assert len(Path(answers).read_text().splitlines()) == 3
    elif command == "plan":
        assert "fits as it is" in shown or "expected peak" in shown
    elif command == "families":
        assert "Qwen/Qwen2.5-VL-3B-Instruct" in shown
    else:
        assert shown.strip()


# The second snippet of callbacks goes on with the list of the first.
SNIPPETS = {
    "README: boxes": YAML[1],
    "README: callbacks": YAML[2] + YAML[3],
    **{f"README: {place}": text for place, text in enumerate(YAML[4:], 4)},
    **{f"callbacks: {place}": text for place, text in enumerate(blocks("callbacks/README.md", "yaml"))},
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_of_configs(project, name, capsys):
    Path("snippet.yaml").write_text(SNIPPETS[name])
    # Half the data in steps of half as many batches: two steps are an epoch still.
    Path("train.jsonl").write_text("\n".join(Path("train.jsonl").read_text().splitlines()[::-2]))
    steps = ("--trainer.accumulate_grad_batches", "4", *FEW)
    callbacks = yaml.safe_load(SNIPPETS[name]).get("trainer", {}).get("callbacks", [])
    named = {callback["class_path"].rpartition(".")[2] for callback in callbacks}
    assert (
        main(["fit", "--config", "my.yaml", "--config", "snippet.yaml", "--trainer.logger", "false", *steps])
        == 0
    )
    saved = yaml.safe_load(Path("checkpoints/config.yaml").read_text())
    callbacks = saved["trainer"]["callbacks"] or []
    assert {callback["class_path"].rpartition(".")[2] for callback in callbacks} == named


def test_python(project):
    (code,) = blocks("README.md", "python")
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()  # those of pytest's own settings too
        warnings.simplefilter("default")
        quiet.install()  # as importing the package does
        exec(code, {})
    assert not [str(warning.message) for warning in seen if "lightning" in warning.filename]
    assert len(Path("answers.jsonl").read_text().splitlines()) == 3


class Classifier(LightningModule):
    """A project that is not ours, with the modules that the README of the callbacks names."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(6))
        self.backbone = torch.nn.ModuleDict({"layers": layers})
        self.head = torch.nn.Linear(4, 1)

    def loss(self, batch):
        for layer in self.backbone["layers"]:
            batch = batch + layer(batch).tanh()
        return self.head(batch).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class MyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.depth, self.normals = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, batch):
        shared = self.shared(batch).tanh()
        return self.depth(shared).square().mean(), self.normals(shared).sub(1).square().mean()


def test_python_of_the_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks, gradnorm = blocks("callbacks/README.md", "python")
    data = DataLoader(torch.randn(8, 4), batch_size=2)
    names = {}
    exec(callbacks, names)
    names["trainer"].fit_loop.max_epochs = 2
    names["trainer"].fit(Classifier(), data, data)
    assert names["trainer"].global_step == 8

    names = {"torch": torch, "MyNetwork": MyNetwork}
    exec(gradnorm, names)
    names["trainer"].fit_loop.max_epochs = 1
    names["trainer"].fit(names["Scenes"](), data)
    assert names["trainer"].global_step == 4


def test_make():
    """The targets that the README names are there."""
    named = re.findall(r"^make (\w+)", "\n".join(blocks("README.md", "")), re.MULTILINE)
    assert named == ["demo", "test"]
    if os.name == "posix":
        subprocess.run(["make", "--dry-run", *named], cwd=ROOT, check=True, capture_output=True)
