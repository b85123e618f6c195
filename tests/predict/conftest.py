"""A folder to work in, with pictures, some of which can't be read, and questions about them."""

import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn

ASK = "What shape is it?"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """`photos/` in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, sample in enumerate(Drawn("test", size=5)):
        file = Path("photos", "sub" if number % 2 else ".", f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample.images[0].data)
    Path("photos/broken.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    Path("photos/phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Path("photos/notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def questions(photos):
    """`questions.jsonl`: five questions with right answers and ids."""
    rows = []
    for number in range(5):
        picture = f"photos/sub/{number}.png" if number % 2 else f"photos/{number}.png"
        content = [{"type": "image", "path": picture}, {"type": "text", "text": ASK}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "moon"}]
        rows.append({"messages": turns, "id": f"q{number}", "task": "vqa"})
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path("questions.jsonl")


@pytest.fixture
def predict():
    """Run the command on the shipped model; its exit code."""

    def run(*words, model=("--model.name_or_path", "drawn-vlm")):
        return main(["predict", *model, "--trainer.accelerator", "cpu", *map(str, words)])

    return run


@pytest.fixture
def rows_of():
    """The lines of a file of answers."""

    def read(path):
        return [json.loads(line) for line in Path(path).read_text("utf-8").split("\n") if line]

    return read


@pytest.fixture
def make_quiet(tmp_path):
    """A quiet Trainer on the CPU."""

    def make(**options):
        given = {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": tmp_path,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            **options,
        }
        return Trainer(**given)

    return make


@pytest.fixture
def write_rows(photos):
    """Write rows to `own.jsonl`; its path."""

    def write(rows):
        Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return "own.jsonl"

    return write
