"""`configs/models/`: they say what is true of each model, and run with the recipes."""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText

from lightning_vlm.cli import main
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.kinds import Kind
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import Asked, room_of
from lightning_vlm.planning.methods import OWN
from lightning_vlm.planning.planner import Planner
from lightning_vlm.published import families
from tests.support import tiny
from tests.support.page_project import write
from tools import model_fragments
from tools.model_memory import known, read_recipe
from tools.published_shapes import make_folder, published, published_config

FIRST = {row.family: row for row in reversed(published().values())}
"""A checkpoint of each family."""
NOT_LISTED = {"smolvlm-500m", "internvl3-2b"}
"""Sizes that `lightning-vlm families` leaves out."""


def settings(row):
    return yaml.safe_load((model_fragments.CONFIGS / f"{row.name}.yaml").read_text())


def test_the_files_are_what_the_tables_say():
    """`python -m tools.model_fragments` writes them again."""
    files = model_fragments.files()
    for path, text in files.items():
        assert path.read_text("utf-8") == text, path
    assert {*model_fragments.CONFIGS.iterdir()} == {*files} - {model_fragments.PAGE}


def test_each_family_has_one():
    assert FIRST.keys() == families().keys()
    for row in published().values():
        assert row.name in NOT_LISTED or row.checkpoint in families()[row.family].checkpoints
    assert known().keys() == {row.name for row in published().values() if row.source}


@pytest.mark.parametrize("name", known())
def test_parameters_are_those_of_the_shape(name, model_folder):
    row = published()[name]
    config = published_config(row, AutoConfig.from_pretrained(model_folder(row.family)))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == sum(known()[name]["parts"].values())
    assert row.parameters in (None, count)
    assert known()[name]["bytes"] == 2 * count


def test_memory_is_what_a_plan_counts(tmp_path, monkeypatch):
    folder = make_folder("smolvlm-256m", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("lora")
    write(tmp_path / "train.jsonl", [_row("red.png")])
    _picture(tmp_path / "red.png")
    module = VLMModule(str(folder), adapt=recipe["model"]["adapt"])
    planner = Planner(
        module, VLMDataModule(train="train.jsonl"), Asked("bf16-mixed", accumulate=8), room_of("24GiB")
    )
    need = planner._counts[OWN].need(False, 1)
    held = known()["smolvlm-256m"]["held"]["lora"]
    assert need.weights + need.gradients + need.states == pytest.approx(held, rel=1e-3)


def test_all_parse_with_a_recipe(capsys):
    """Each file is read strictly, and the last of them wins."""
    files = [word for name in published() for word in ("--config", f"models/{name}")]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *files, "--config", "recipes/lora", "--print_config"])
    assert f"name_or_path: {[*published().values()][-1].checkpoint}\n" in capsys.readouterr().out


@pytest.mark.parametrize("row", FIRST.values(), ids=lambda row: row.name)
def test_each_renders_a_sample(row, model_folder, tmp_path):
    config = settings(row)
    options = {**config["model"], "name_or_path": str(model_folder(row.family))}
    module = VLMModule(**options)
    _picture(tmp_path / "red.png")
    write(tmp_path / "train.jsonl", [_row("red.png")])
    data = VLMDataModule(str(tmp_path / "train.jsonl"), processor=module.processor, **config.get("data", {}))
    sample = data.samples("train")[0]
    kinds = data.renderer.example(sample).kinds
    assert (kinds == Kind.IMAGE).any()
    assert (kinds == Kind.RESPONSE).any()


@pytest.mark.parametrize("family", tiny.SAMPLE)
def test_a_step_in_16_bits(family, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _picture(tmp_path / "red.png")
    write(tmp_path / "train.jsonl", [_row("red.png")])
    row = FIRST[family]
    words = ["fit", "--config", f"models/{row.name}", "--model.name_or_path", str(model_folder(family))]
    words += ["--data.train", "train.jsonl", "--data.batch_size", "1", "--trainer.max_steps", "1"]
    words += ["--model.adapt", "full", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    words += ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"]
    assert main(words) == 0


def test_the_guide_names_what_fits():
    """With a tenth of the memory free, half a GiB for CUDA, and a tenth for activations."""
    held = {_plain(row.checkpoint): known()[row.name]["held"] for row in published().values() if row.source}
    rows = re.findall(r"^\| (\d+) GB \| (.*) \| (.*) \|$", model_fragments.PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 4
    for size, *columns in rows:
        for recipe, names in zip(("lora", "qlora"), columns, strict=True):
            for name in names.split(", "):
                found = [sizes for checkpoint, sizes in held.items() if checkpoint.startswith(_plain(name))]
                assert found, name
                assert found[0][recipe] < 0.8 * int(size) * 2**30 - 2**29, name


def _plain(name):
    return re.sub(r"[^a-z0-9.]", "", name.split("/")[-1].lower())


def _picture(path: Path) -> None:
    PIL.Image.new("RGB", (96, 64), "red").save(path)


def _row(picture):
    asked = [{"type": "image", "path": picture}, {"type": "text", "text": "What colour is it?"}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "It is red."}]}
