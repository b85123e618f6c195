"""A folder with the configs of other tools and data for them, and the command in it."""

import io
import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import yaml

from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Text
from lightning_vlm.data.drawn import Drawn

CASES = Path(__file__).parent / "cases"
"""Configs in the shape of those that the tools publish."""
SAMPLES = 8


def rows():
    """Drawn samples: the picture, the question and the answer of each."""
    data = Drawn("train", size=SAMPLES, seed=5, tasks=["vqa"], rounds=1)
    for number in range(SAMPLES):
        sample = data[number]
        texts = [[part.text for part in turn.parts if isinstance(part, Text)] for turn in sample.messages]
        ask, answer = map(" ".join, texts[-2:])
        yield PIL.Image.open(io.BytesIO(sample.images[0].data)), ask, answer


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder with the cases, and with their data in data/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("WANDB_MODE", "offline")
    shutil.copytree(CASES, tmp_path, dirs_exist_ok=True)
    messages, pairs = [], []
    for number, (picture, ask, answer) in enumerate(rows()):
        picture.save(f"data/{number}.png")
        turns = [{"role": "user", "content": f"<image>{ask}"}, {"role": "assistant", "content": answer}]
        messages.append({"messages": turns, "images": [f"{number}.png"]})
        pairs.append({"ask": ask, "reply": answer, "image": f"{number}.png"})
    Path("data/pets.jsonl").write_text("\n".join(map(json.dumps, messages)))
    Path("data/more.jsonl").write_text("\n".join(map(json.dumps, messages)))
    Path("data/pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return tmp_path


@pytest.fixture
def migrate(here, capsys):
    """Run the command; gives the config, its text, and what was printed."""

    def run(*words, out="my.yaml", code=0):
        Path(out).unlink(missing_ok=True)
        given = ["--out", out, *words] if "--" in words else [*words, "--out", out]
        assert main(["migrate", *given]) == code
        shown = capsys.readouterr()
        if code:
            return shown.err
        text = Path(out).read_text("utf-8")
        return yaml.safe_load(text), text, shown.out

    return run
