"""A folder with pictures, and the command in it."""

import io
import json
from pathlib import Path

import PIL.Image
import pytest
import yaml

from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.planning import choose


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder, in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def shapes(here):
    """Twenty drawn pictures in a folder: question, answer, name and task of each."""

    def make(folder="pictures", size=20, tasks=("vqa", "caption")):
        Path(folder).mkdir(parents=True)
        data = Drawn("train", size=size, seed=5, tasks=list(tasks), rounds=1)
        samples = []
        for number in range(size):
            sample = data[number]
            name = f"{number:02}.png"
            PIL.Image.open(io.BytesIO(sample.images[0].data)).save(Path(folder, name))
            turns = [
                " ".join(part.text for part in turn.parts if isinstance(part, Text))
                for turn in sample.messages
            ]
            samples.append({"image": name, "question": turns[-2], "answer": turns[-1], "task": sample.task})
        return samples

    return make


def write(rows, path="shapes.jsonl"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return path


_choices = {}


@pytest.fixture
def once_per_length(monkeypatch):
    """What fits into memory is found once for a model and the lengths of its samples: it takes seconds."""

    def remembered(model, lengths, memory=None, **options):
        key = model, tuple(lengths), memory, tuple(sorted(options.items()))
        if key not in _choices:
            _choices[key] = choose(model, lengths, memory, **options)
        return _choices[key]

    monkeypatch.setattr("lightning_vlm.start.command.choose", remembered)


@pytest.fixture
def once_per_model(once_per_length, monkeypatch):
    """What fits is that of the first samples of all, for tests that are about something else."""

    def remembered(model, lengths, memory=None, **options):
        key = model, memory
        if key not in _choices:
            _choices[key] = choose(model, lengths, memory, **options)
        return _choices[key]

    monkeypatch.setattr("lightning_vlm.start.command.choose", remembered)


@pytest.fixture
def init(here, capsys, once_per_length):
    """Run the command with the shipped model; gives the config, and what was printed."""

    def run(*words, model="drawn-vlm", out="my.yaml"):
        code = main(["init", *words, *(["--model", model] if model else []), "--out", out])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return yaml.safe_load(Path(out).read_text("utf-8")), shown.out

    return run


@pytest.fixture
def refused(here, capsys):
    """Run the command on what it refuses; gives the message, which is short."""

    def run(*words, model="drawn-vlm"):
        files = sorted(Path().rglob("*"))
        code = main(["init", *words, *(["--model", model] if model else [])])
        message = capsys.readouterr().err.strip()
        assert code == 2
        assert "Traceback" not in message
        assert len(message.splitlines()) <= 3
        assert sorted(Path().rglob("*")) == files
        return message

    return run
