"""`--stages.NAME.KEY VALUE` sets one key of one stage of the configs, and what it can't set is an error."""

from pathlib import Path

import pytest
import yaml

from lightning_vlm.cli import main
from lightning_vlm.config.stage_words import with_stages
from lightning_vlm.errors import UserError

FILE = """\
model: {name_or_path: drawn-vlm}
stages:
  - &first {name: align, epochs: 1e0, train: [projector], data: {batch_size: 4}}
  - {<<: *first, name: chat, epochs: 1, train: {language: 0.1}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(FILE)


def stages(*words):
    words = with_stages(["--config", "c.yaml", *words, "--data.batch_size", "2"])
    assert words[:2] == ["--config", "c.yaml"]
    assert words[2:-2] == ["--data.batch_size", "2"]
    assert words[-2] == "--stages"
    return yaml.safe_load(words[-1])


def test_words_without_stages_stay():
    words = ["--config", "none.yaml", "--stage", "align"]
    assert with_stages(words) == words


def test_keys_are_set_and_others_stay():
    first, second = stages("--stages.align.data.train", "a.jsonl", "--stages.chat.learning_rate=1e-4")
    assert first["data"] == {"batch_size": 4, "train": "a.jsonl"}
    assert first["train"] == ["projector"]
    assert second["train"] == {"language": 0.1}
    assert second["learning_rate"] == "1e-4"  # which our parser reads as a number, and plain YAML as a text


def test_a_key_of_one_stage_is_of_no_other():
    """Though an alias shares what they have in common."""
    first, second = stages("--stages.chat.data.train", "b.jsonl")
    assert first["data"] == {"batch_size": 4}
    assert second["data"] == {"batch_size": 4, "train": "b.jsonl"}


def test_the_last_list_counts():
    words = with_stages(
        ["--config", "c.yaml", "--stages", "[{name: new, steps: 3}]", "--stages.new.steps", "4"]
    )
    assert words == ["--config", "c.yaml", "--stages", "[{name: new, steps: 4}]"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--config", "c.yaml", "--stages.aling.steps", "3"],
            "there is no stage aling, only align, chat; did you",
        ),
        (["--config", "c.yaml", "--stages.align", "3"], "such as --stages.align.steps"),
        (["--config", "c.yaml", "--stages.align.steps"], "--stages.align.steps: expected a value behind it"),
        (["--config", "quickstart", "--stages.align.steps", "3"], "found no stages; expected a --config"),
    ],
)
def test_what_cannot_be(words, expected):
    with pytest.raises(UserError, match=expected):
        with_stages(words)


def test_the_command_takes_them(capsys):
    assert main(["preview", "--config", "c.yaml", "--stages.align.steps", "3"]) == 2  # two lengths
    assert "stages.align: found both of steps and epochs" in capsys.readouterr().err.replace("\n", " ")
    assert main(["preview", "--config", "c.yaml", "--stages.align.stpes", "3"]) == 2
    assert "stpes" in capsys.readouterr().err
