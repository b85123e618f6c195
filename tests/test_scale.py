"""The configs of scale: each parses, and processes started by torchrun make the update that one makes."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from tests.support.page_project import write
from tests.support.ranks import call_on_ranks

# isort: split
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

ROOT = Path(__file__).parents[1]
SCALE = ROOT / "configs" / "scale"
RUN = """\
model:
  name_or_path: drawn-vlm
  adapt: {projector: full, language: {lora: {r: 4}}}
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data: {train: train.jsonl, shuffle: false}
trainer:
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: ., filename: last}
"""
DRAWN = "{class_path: Drawn, init_args: {split: train, size: 4, tasks: [vqa]}}"


@pytest.mark.parametrize("path", sorted(SCALE.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_parses_behind_a_run(path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", "quickstart", "--config", f"scale/{path.stem}", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for key, value in yaml.safe_load(path.read_text())["trainer"].items():
        if isinstance(value, dict):  # a class, printed with all of its arguments
            assert found[key]["class_path"] == value["class_path"]
            assert value["init_args"].items() <= found[key]["init_args"].items()
        else:
            assert found[key] == value


def test_the_script_for_slurm():
    file = SCALE / "many-nodes.sbatch"
    subprocess.run(["bash", "-n", file], check=True, timeout=20)
    text = file.read_text()
    for needed in ("--requeue", "--signal=SIGUSR1@", "--ckpt_path last", "scale/many-nodes", "srun"):
        assert needed in text


def test_torchrun_starts_two_processes_that_update_as_one(tmp_path, monkeypatch):
    """The launch line of scale/many-nodes, on the CPU with scale/cpu-two-processes."""
    samples = Drawn("train", size=8, tasks=["vqa"], rounds=1)
    rows = []
    for number, sample in enumerate(samples):
        (tmp_path / f"{number}.png").write_bytes(sample.images[0].data)
        question, answer = (turn.parts[-1].text for turn in sample.messages[-2:])
        asked = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer * (number + 1)}]
        rows.append({"messages": turns})
    weights = []
    for name, words in {"two": ["--data.batch_size", "2"], "one": ["--data.batch_size", "4"]}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.yaml").write_text(RUN.replace("train.jsonl", "../train.jsonl"))
        write(tmp_path / "train.jsonl", rows)
        monkeypatch.chdir(folder)
        if name == "one":
            assert main(["fit", "--config", "run.yaml", "--trainer.accelerator", "cpu", *words]) == 0
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
            scale = ["--config", "scale/cpu-two-processes"]
            command = [*launch, "-m", "lightning_vlm", "fit", "--config", "run.yaml", *scale, *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
            assert done.returncode == 0, done.stderr[-3000:]
            assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr
            assert "gloo" in done.stderr
        weights.append(torch.load("last.ckpt", weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-6, msg=key)


def test_the_task_of_skypilot():
    """Its keys are SkyPilot's, and its words those of the configs beside it."""
    file = SCALE / "skypilot.yml"
    task = yaml.safe_load(file.read_text())
    assert task.keys() <= {"name", "num_nodes", "workdir", "resources", "file_mounts", "setup", "run"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True, timeout=20)
    assert_parses(words_of_fit(task["run"]))


def test_the_script_of_ray(tmp_path, monkeypatch):
    """Ray isn't installed: processes come from torchrun's environment, and classes are those that its own
    inherit from. What runs in them is the script's.
    """
    train = SimpleNamespace(FailureConfig=None, RunConfig=None, ScalingConfig=None)
    classes = SimpleNamespace(RayDDPStrategy=OfRay, RayLightningEnvironment=EnvironmentOfRay)
    pretended = {"ray.train": train, "ray.train.torch": SimpleNamespace(TorchTrainer=None)}
    for name, module in {
        "ray": SimpleNamespace(train=train),
        "ray.train.lightning": classes,
        **pretended,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    script = runpy.run_path(str(SCALE / "ray_train.py"))
    assert_parses(shlex.split(launch_line(script["__doc__"]))[4:])
    (tmp_path / "run.yaml").write_text(RUN.replace("train: train.jsonl", f"train: {DRAWN}"))
    words = ["--config", "run.yaml", "--data.batch_size", "1", "--trainer.accelerator", "cpu"]

    def on_rank():
        script["train"]({"folder": str(tmp_path), "words": words})
        saved = torch.load("last.ckpt", weights_only=True)
        return {"step": saved["global_step"], "made": OfRay.made}

    assert call_on_ranks(on_rank) == [{"step": 2, "made": 1}] * 2


class OfRay(DDPStrategy):
    """Stands for RayDDPStrategy, whose device Ray chooses, and counts how often it is made."""

    made = 0

    def __init__(self, **options):
        super().__init__(**options)
        OfRay.made += 1

    @property
    def root_device(self):
        return torch.device("cpu")


class EnvironmentOfRay(TorchElasticEnvironment):
    """Stands for RayLightningEnvironment, which asks Ray how many processes there are."""

    def validate_settings(self, num_devices, num_nodes):
        pass


def launch_line(text):
    """The line of a script's head that starts it."""
    return next(line.strip() for line in text.splitlines() if "python ray_train.py" in line)


def words_of_fit(script):
    """The words behind `lightning_vlm fit` in a shell script, with numbers for its variables."""
    text = script.replace("\\\n", " ").partition("lightning_vlm fit")[2]
    return shlex.split(re.sub(r'"\$\w+"', "2", text))


def assert_parses(words):
    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit, match="0"):
        main(["fit", *words, "--print_config"])
