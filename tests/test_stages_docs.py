"""What docs/stages.md shows runs, and so do the configs in stages, through all of their stages."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lightning_vlm import Stage, StageData
from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Text
from lightning_vlm.data.drawn import Drawn

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "stages.md").read_text("utf-8")
RUN, PROMPTS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
CONFIGS = sorted((ROOT / "configs" / "examples").glob("*-stages.yaml"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page names: drawn pictures of some tasks, without boxes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    tasks = {"captions": ["caption"], "tasks": ["vqa", "ocr", "caption"], "val": ["vqa"]}
    for name, of in tasks.items():
        lines = []
        for number, sample in enumerate(Drawn(size=8, tasks=of)):
            (picture,) = sample.images
            path = Path("pictures", f"{name}{number}.png")
            path.write_bytes(picture.data)
            words = [[part for part in turn.parts if isinstance(part, Text)] for turn in sample.messages]
            texts = ["".join(part.text for part in parts) for parts in words]
            asked = [{"type": "image", "path": str(path)}, {"type": "text", "text": texts[-2]}]
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": texts[-1]}]
            lines.append(json.dumps({"messages": turns, "task": sample.task}))
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def begun():
    """The steps at which stages began, and their names, as the run's report has them."""
    report = next(Path().rglob("report.jsonl")).read_text()
    events = [json.loads(line) for line in report.splitlines()]
    return [(one["step"], one["text"]) for one in events if one.get("event") == "stage"]


def test_the_run_of_the_page(files, capsys):
    shown = RUN.replace("      max_pixels: 200704\n", "")  # drawn-vlm sees all pictures in one size
    assert shown != RUN
    Path("run.yaml").write_text(shown)
    assert main(["fit", "--config", "run.yaml", "--trainer.accelerator", "cpu"]) == 0
    printed = capsys.readouterr()
    # 8 samples in batches of 2, two to a step: 2 steps in an epoch.
    for line in ("0 to 4", "4 to 7", "7 to 10"):
        assert line in printed.out
    assert begun() == [(0, "align"), (4, "multitask"), (7, "chat")]
    assert main(["preview", "--config", "run.yaml", "--stage", "multitask", "--out", "page.html"]) == 0
    assert "ocr" in capsys.readouterr().out


def test_the_prompts_of_the_page(files, capsys):
    Path("run.yaml").write_text(f"model: {{name_or_path: drawn-vlm}}\n{PROMPTS}")
    assert main(["preview", "--config", "run.yaml"]) == 0
    assert "brief." in capsys.readouterr().out.replace("\n", "")


def test_the_python_of_the_page(files):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(code, names)  # it is our own page
    assert [stage.name for stage in names["data"].stages.each()] == ["align", "tasks"]


def test_every_key_is_on_the_page():
    for kind in (Stage, StageData):
        for field in fields(kind):
            assert f"`{field.name}`" in TEXT, field.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_reach_their_last_stage(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text("utf-8"))
    for stage in config["stages"]:
        stage.pop("epochs", None)
        stage["steps"] = 2
        for source in stage.get("data", {}).values():
            if isinstance(source, dict) and "init_args" in source:
                source["init_args"]["size"] = 16
    Path("run.yaml").write_text(yaml.safe_dump(config))
    few = ("--data.eval_batch_size", "4", "--trainer.limit_val_batches", "1")
    assert main(["fit", "--config", "run.yaml", *few]) == 0
    assert begun() == [(2 * number, stage["name"]) for number, stage in enumerate(config["stages"])]
