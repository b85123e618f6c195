"""docs/compare.md: its commands run, in their order, on a short run of the shipped model."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lightning_vlm.cli import main
from lightning_vlm.compare.bootstrap import FEWER_RESAMPLES, LEVEL, RESAMPLES
from lightning_vlm.compare.estimates import FEWEST, FEWEST_CHANGED
from lightning_vlm.compare.sentences import TEXT_COLUMNS

TEXT = (Path(__file__).parents[2] / "docs" / "compare.md").read_text("utf-8")
COMMANDS = re.findall(r"^lightning-vlm (.+)$", TEXT, re.MULTILINE)


def test_the_commands_run(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert Path("kept/tuned nf4.jsonl").exists()
    found = json.loads(Path("found.json").read_text())
    sizes = {model["label"]: model["size"] for model in found["models"]}
    assert list(sizes) == ["base", "tuned", "base nf4", "tuned nf4"]
    assert [model["against"] for model in found["models"]] == [None, "base", "base", "tuned"]
    assert sizes["tuned nf4"] < sizes["tuned"]
    loss = found["sets"][0]["scores"]["all"]["loss"]["tuned nf4"]["difference"]
    assert loss["value"] != 0
    assert any(text.startswith("quantised: tuned nf4 against tuned, val") for text in found["findings"])


NUMBERS = (
    f"{LEVEL:.0%}".replace("%", " times"),
    f"{RESAMPLES:,} draws",
    f"{FEWER_RESAMPLES} for scores",
    f"under {FEWEST}",
)


@pytest.mark.parametrize("fact", NUMBERS)
def test_its_numbers_are_those_of_the_code(fact):
    assert fact in " ".join(TEXT.split())


def test_its_words_are_those_of_the_table():
    assert f"under {FEWEST_CHANGED} that changed" in " ".join(TEXT.split())
    for word in ("differ", "distinct-1", "length", "ratio", "bias"):
        assert word in TEXT_COLUMNS
        assert f"**{word}**" in TEXT
