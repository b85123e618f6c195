"""`lightning-vlm families`: what it says is what the tests of the families found."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import lightning_vlm.families
from lightning_vlm.cli import main
from lightning_vlm.models.packing import why_not_packed
from lightning_vlm.published import families
from tests.support import tiny

FILE = Path(lightning_vlm.families.__file__).with_suffix(".yaml")


def test_each_proved_family_is_listed():
    lines = FILE.read_text("utf-8").splitlines()
    names = [line.rstrip(":") for line in lines if line and line[0] not in " #"]
    assert sorted(names) == sorted(tiny.FAMILIES)


def test_videos_are_as_proved():
    proved = {name for name, family in tiny.FAMILIES.items() if family.video}
    assert {name for name, family in families().items() if family.video} == proved


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packing_is_as_the_model_says(model_folder, family):
    config = AutoConfig.from_pretrained(model_folder(family))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert families()[family].packing == (why_not_packed(model) is None)


def test_the_table_and_one_family(capsys):
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["family", "video", "packed", "nf4"]
    assert any(line.startswith("smolvlm ") and "SmolVLM2-256M" in line for line in lines)
    assert main(["families", "smolvlm", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["video"]
    assert len(found["checkpoints"]) > 1


def test_an_unknown_family(capsys):
    assert main(["families", "qwen2_5_vll"]) == 2
    assert "did you mean qwen2_5_vl?" in capsys.readouterr().err
