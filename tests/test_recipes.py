"""Each recipe trains what it says, on tiny models, and has the scores that it promises."""

import csv
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from lightning_vlm.cli import main
from lightning_vlm.config.moved import with_meant_classes
from lightning_vlm.config.shipped import shipped
from lightning_vlm.config.stage_words import with_stages
from tests.support.parsers import command_parsers
from tools.recipe_memory import (
    SAMPLES,
    Sample,
    command_of,
    counted,
    disagreements,
    head_of,
    plan_words,
    said,
    write_data,
)

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
RECIPES = [name.removeprefix("recipes/") for name in shipped() if name.startswith("recipes/")]


class Case(NamedTuple):
    """How a recipe is tried.

    Args:
        models: Tiny families, or `drawn-vlm`.
        more: Those that are tried with `--all-families` alone.
        tasks: Of the drawn data.
        trains: What trains: a part, or LoRA in one.
        scores: What a validation logs.
        behind: The recipes that it comes behind.
        steps: How many it needs to do what it does.
    """

    models: tuple[str, ...]
    more: tuple[str, ...] = ("drawn-vlm",)
    tasks: tuple[str, ...] = ("vqa",)
    trains: tuple[str, ...] = ("projector", "language lora")
    scores: tuple[str, ...] = ("exact_match", "token_f1")
    behind: tuple[str, ...] = ()
    steps: int = 2


ALL = ("vision", "projector", "language")
BOXES = ("acc@0.5", "acc@0.75", "miou", "parse_failures")
CASES = {
    "lora": Case(("smolvlm",), ("drawn-vlm", "qwen2_5_vl")),
    "qlora": Case(("qwen2_5_vl",)),
    "mixed-16gb": Case(("drawn-vlm",), ()),  # the families' language models have two layers
    "full": Case(("qwen2_5_vl",), trains=ALL),
    "projector-pretraining": Case(
        ("llava",), ("drawn-vlm", "internvl"), ("caption",), ("projector",), ("rougeL", "chrf")
    ),
    "qwen-vl-stages": Case(("qwen2_5_vl",), tasks=("caption", "vqa"), trains=ALL, steps=3),
    "medical-unfreezing": Case(("qwen2_5_vl",), trains=("vision", "projector"), behind=("full",), steps=4),
    "many-tasks": Case(("smolvlm",), tasks=("caption", "vqa", "ocr"), behind=("lora",)),
    "adaptive-rank": Case(("qwen3_vl",), behind=("qlora",), steps=12),
    "callbacks": Case(("drawn-vlm",), ("smolvlm",), behind=("lora",)),
    "grounding": Case(("qwen2_5_vl",), tasks=("grounding",), scores=BOXES, behind=("lora",)),
    "ocr": Case(
        ("pixtral",), ("drawn-vlm", "qwen2_5_vl"), ("ocr",), scores=("anls", "cer", "wer"), behind=("lora",)
    ),
    "charts": Case(("qwen3_vl",), scores=("relaxed_accuracy",), behind=("lora",)),
    "video": Case(("llava_onevision",), ("qwen2_5_vl",), behind=("lora",)),
    "image-text-pretraining": Case(("internvl",), tasks=("caption",), trains=ALL, scores=()),
    "classification": Case(("drawn-vlm",), ("internvl",), ("referring",), behind=("qlora",)),
}
ONE_SIZE = ("drawn-vlm", "llava", "smolvlm")
"""Models that see all pictures in one size, whatever `data.max_pixels` says."""
STAGES = ("align", "multitask", "chat")
PLACES = {
    "projector": ("projector", "merger", "connector", "image_newline"),
    "vision": ("vision_tower", "visual.", "vision_model"),
}
"""What the names of weights have in them. All else is the language model."""


def pytest_generate_tests(metafunc):
    if "model" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--all-families")
        chosen = {name: [*case.models, *(case.more if whole else ())] for name, case in CASES.items()}
        pairs = [(name, model) for name, models in chosen.items() for model in models]
        metafunc.parametrize(("name", "model"), pairs)


def words_of(name, model, folder):
    """The command line of a short run."""
    case, text = CASES[name], shipped()[f"recipes/{name}"].path.read_text("utf-8")
    kind = "DrawnVideos" if name == "video" else "Drawn"
    tasks = "" if name == "video" else f", tasks: [{', '.join(case.tasks)}]"
    few = {
        "--model.name_or_path": str(folder),
        "--data.train": f"{{class_path: {kind}, init_args: {{size: 40{tasks}}}}}",
        "--data.num_workers": "0",
        "--trainer.accelerator": "cpu",
        "--trainer.limit_val_batches": "1",
        "--trainer.log_every_n_steps": "1",
        "--report": "false",
    }
    if "generation:" in text or case.behind:
        few["--model.generation"] = "{max_new_tokens: 4}"
    if name == "qwen-vl-stages":
        few["--data.val"] = "{class_path: Drawn, init_args: {size: 2, split: val}}"
        settings = {
            "steps": 1,
            "epochs": "null",
            "accumulate": 1,
            "data.batch_size": 2,
            "data.max_length": 400,
        }
        few |= {f"--stages.{stage}.{key}": str(value) for stage in STAGES for key, value in settings.items()}
    else:
        few |= {
            "--data.batch_size": "2",
            "--data.max_length": "400",
            "--trainer.max_steps": str(case.steps),
            "--trainer.accumulate_grad_batches": "1",
            "--trainer.val_check_interval": str(case.steps),
        }
    if model in ONE_SIZE and "max_pixels: " in text:
        sections = [f"stages.{stage}.data" for stage in STAGES] if name == "qwen-vl-stages" else ["data"]
        few |= {f"--{section}.max_pixels": "null" for section in sections}
    if model in ("drawn-vlm", "llava") and "vision" in case.trains:  # both read the layer before it
        few["--model.no_gradient_needed"] = "[vision.post_layernorm]"
    recipes = [word for recipe in (*case.behind, name) for word in ("--config", f"recipes/{recipe}")]
    return ["fit", *recipes, *(word for pair in few.items() for word in pair)]


def part_of(weight):
    """Which part of a model a weight belongs to, and whether it is LoRA's."""
    found = (part for part, places in PLACES.items() if any(place in weight for place in places))
    return next(found, "language") + (" lora" if "lora_" in weight else "")


def test_it_trains_what_it_says(name, model, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    assert main(words_of(name, model, model if model == "drawn-vlm" else model_folder(model))) == 0
    logged = {}
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        for row in csv.DictReader(file):
            logged |= {key: float(value) for key, value in row.items() if value}
    losses = [value for key, value in logged.items() if key.endswith("loss")]
    assert losses
    assert all(map(math.isfinite, losses))
    assert {f"val/{score}" for score in case.scores} <= logged.keys()
    checkpoint = max(tmp_path.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert {part_of(weight) for weight in weights} == {*case.trains}


def test_each_recipe_is_tried():
    assert sorted(CASES) == sorted(RECIPES)


@pytest.fixture(scope="module")
def parser():
    """That of `fit`."""
    return command_parsers()["fit"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_in_its_head_is_one(name, parser):
    program, fit, *words = command_of(name)
    assert (program, fit) == ("lightning-vlm", "fit")
    configs = [words[place + 1] for place, word in enumerate(words) if word == "--config"]
    assert configs[-1] == f"recipes/{name}"
    if name != "callbacks":
        model, *before = configs[:-1]
        assert before in ([f"recipes/{one}" for one in CASES[name].behind], ["recipes/lora"])
        assert model in shipped()
    parsed = parser.parse_args(with_stages(with_meant_classes(words)))
    assert parsed.model.name_or_path


@pytest.mark.parametrize("name", RECIPES)
def test_it_names_no_model_and_no_data(name):
    config = yaml.safe_load(shipped()[f"recipes/{name}"].path.read_text("utf-8"))
    assert "name_or_path" not in config.get("model", {})
    sections = [config.get("data", {}), *(stage["data"] for stage in config.get("stages", []))]
    for section in sections:
        assert not {"train", "test", "predict", "image_root"} & section.keys()
        assert re.fullmatch(r"\d+%|None", str(section.get("val")))


@pytest.mark.parametrize("name", RECIPES)
def test_its_head_says_what_one_asks(name):
    head = " ".join(head_of(name))
    for word in ("Memory: ", "Expect: ", "Change: "):
        assert word in head, word


def test_the_page_has_each_and_its_memory():
    rows = dict(re.findall(r"^\| `([\w.-]+)` (\|.*)$", PAGE, re.MULTILINE))
    assert sorted(rows) == sorted(RECIPES)
    for name, row in rows.items():
        memory = re.search(r"([\d.]+) GiB \|$", row)
        assert memory is None or memory[1] == said(name).gib, name


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "callbacks"])
def test_its_head_has_a_figure_for_its_batch(name):
    """`python -m tools.recipe_memory` counts all of them again, in a minute of a processor each."""
    data = {}
    for behind in [word for word in command_of(name) if word.startswith("recipes/")]:
        config = yaml.safe_load(shipped()[behind].path.read_text("utf-8"))
        data |= config.get("data", {})
        for stage in config.get("stages", []):
            if stage["name"] == SAMPLES[name].stage:
                data |= stage["data"]
    assert said(name).samples == data["batch_size"]


def test_a_figure_is_that_of_a_plan(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sample = Sample((96, 64), 8)
    write_data(sample)
    words = plan_words("ocr", model_folder("qwen2_5_vl"), sample)
    found = counted(words)
    capsys.readouterr()
    assert main(["plan", *words, "--memory", "24GiB", "--compare", "false", "--json", "true"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert found.samples == written["samples"] == 1
    assert found.gib == f"{written['bytes'] / 2**30:.1f}"


def test_heads_say_what_is_counted(pytestconfig):
    """Two of them, and those of `make test-all` alone."""
    if not pytestconfig.getoption("--all-families"):
        pytest.skip("two minutes of a processor")
    assert not disagreements(["qlora", "charts"])
