"""docs/search-hyperparameters.md: its scripts and its sweep, as the page has them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_vlm.cli import main
from tests.support.pages import blocks

PAGE = "docs/search-hyperparameters.md"
FILES = {block.says["file"]: block.text for block in blocks(PAGE) if "file" in block.says}
MY = """
model:
  name_or_path: drawn-vlm
  adapt: {projector: full, language: {lora: {r: 16}}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.0e-4}}
data:
  train: {class_path: Drawn, init_args: {size: 32}}
  val: {class_path: Drawn, init_args: {size: 4, seed: 1}}
trainer: {max_steps: 4, val_check_interval: 2, accelerator: cpu, enable_progress_bar: false}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(MY)
    return tmp_path


def run_script(name, *changes):
    """Run a script of the page, with some texts in it replaced; what it prints last."""
    text = FILES[name]
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    Path(name).write_text(text)
    done = subprocess.run([sys.executable, name], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("\x1b", "(trial"))]
    place = max(number for number, line in enumerate(lines) if line.startswith("lightning-vlm fit "))
    best = shlex.split(lines[place])[1:]
    assert main([*best, "--trainer.max_steps", "1", "--trainer.logger", "false"]) == 0
    return "\n".join(lines[:place])


def test_all_that_the_page_shows_is_run_here():
    assert set(FILES) == {"search.py", "ray_search.py", "sweep.yaml"}
    others = [block.text for block in blocks(PAGE) if "file" not in block.says]
    assert others[:2] == ["python search.py\n", "python ray_search.py\n"]
    assert len(others) == 3
    for name in ("search.py", "ray_search.py"):
        compile(FILES[name], name, "exec")


@pytest.mark.filterwarnings("ignore")
def test_the_command_that_an_agent_of_a_sweep_runs(project):
    """As wandb's own agent makes it; which values are drawn is the server's business."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    sweep = yaml.safe_load(FILES["sweep.yaml"])
    drawn = {
        name: {"value": values.get("values", [3e-4])[-1]} for name, values in sweep["parameters"].items()
    }
    words = []
    for word in sweep["command"]:
        words += create_sweep_command_args({"args": drawn})["args"] if word == "${args}" else [word]
    assert words[0] == sweep["program"] == "lightning-vlm"
    assert sweep["metric"]["name"] == "val/loss"
    few = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--trainer.logger.save_dir", "wb"]
    assert main([*words[1:], *few]) == 0
    config = yaml.safe_load(next(Path("wb").rglob("config.yaml")).read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert config["model"]["adapt"]["language"] == {"lora": {"r": 32}}


@pytest.mark.filterwarnings("ignore")
def test_optuna_goes_on_where_it_was_stopped_and_prunes(project):
    optuna = pytest.importorskip("optuna", reason="Optuna isn't installed")
    table = run_script("search.py", ('"my.yaml", 20', '"my.yaml", 2'))
    assert table.count("COMPLETE") == 2
    # Every later trial is behind.
    table = run_script(
        "search.py",
        ('"my.yaml", 20', '"my.yaml", 3'),
        ("MedianPruner(n_startup_trials=4)", "ThresholdPruner(upper=0.0)"),
    )
    assert (table.count("COMPLETE"), table.count("PRUNED")) == (2, 1)
    study = optuna.load_study(study_name="my.yaml", storage="sqlite:///search.db")
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[2, 4], [2, 4], [2]]
    assert all(1e-5 <= trial.params["rate"] <= 5e-4 for trial in study.trials)


@pytest.mark.filterwarnings("ignore")
def test_ray_tune(project):
    pytest.importorskip("ray", reason="Ray isn't installed")
    table = run_script(
        "ray_search.py",
        ('"my.yaml", 20, 4', '"my.yaml", 2, 2'),
        ('{"cpu": 4, "gpu": 1}', '{"cpu": 1, "gpu": 0}'),
    )
    rows = table.rpartition("config/rate")[2].splitlines()[1:]
    assert len(rows) == 2
    losses = [float(row.split()[2]) for row in rows]
    assert losses == sorted(losses)
