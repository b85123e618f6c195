"""The table says what trains, counted another way."""

import re

import pytest
from rich.console import Console

from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.models.plan.table import plan_rows, plan_table
from tests.support import tiny


def adapted(folder, plan):
    model = load_model(folder).model
    adapt(model, plan, find_parts(model))
    return model


def printed(model, plan):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(plan_table(model, find_parts(model), plan))
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in console.export_text().splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 6}


def test_counts(tiny_folder):
    plan = {"projector": "full", "language": {"lora": {"r": 2, "modules": ["q_proj"]}}, "vision": "frozen"}
    model = adapted(tiny_folder("llava"), plan)
    found = printed(model, plan)
    projector = sum(w.numel() for w in model.model.multi_modal_projector.parameters())
    adapters = 2 * (2 * 64 + 64 * 2)  # two layers; A is 2×64, B is 64×2
    language = sum(w.numel() for w in model.model.language_model.parameters())
    everything = sum(w.numel() for w in model.parameters())
    assert found["projector"] == ["", "full", "", f"{projector:,}", "100.00%"]
    assert found["language"] == ["language 0-1", "lora", "2", f"{adapters:,}", f"{adapters / language:.2%}"]
    assert found["vision"] == ["vision 0-2", "frozen", "", "0", "0.00%"]
    assert found["(not named)"] == ["", "frozen", "", "0", "0.00%"]
    total = projector + adapters
    assert found["all"] == ["", "", "", f"{total:,}", f"{total / everything:.2%}"]


def test_adapters_and_variants(tiny_folder):
    plan = {
        "language.layers[0]": {"lora": {"r": 2, "rslora": True, "dora": True, "init": "gaussian"}},
        "language.layers[1]": {"adapter": {"reduction": 8, "kind": "parallel"}},
    }
    model = adapted(tiny_folder("llava"), plan)
    rows = {row[0]: row for row in plan_rows(model, find_parts(model), plan)}
    width, inner = 64, 64 // 8
    trained = 2 * width + (width * inner + inner) + (inner * width + width)
    assert rows["language.layers[0]"][1:4] == ("language 0", "lora rslora dora init=gaussian", "2")
    assert rows["language.layers[1]"][1:5] == ("language 1", "adapter reduction=8 kind=parallel", "", trained)
    assert rows["(not named)"][1] == "vision 0-2"


def test_weights_of_4_bits_are_counted_one_by_one(tiny_folder):
    counts = []
    for quantization in (None, Quantization("nf4")):
        model = load_model(tiny_folder("llava"), quantization=quantization).model
        adapt(model, {"language": {"lora": {"r": 2}}}, find_parts(model))
        counts.append(plan_rows(model, find_parts(model), {"language": {"lora": {"r": 2}}}))
    assert counts[0] == counts[1]


@pytest.fixture
def deeper(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.family.TEXT_SIZE, "num_hidden_layers", 8)
    return tiny.build("llava", tmp_path)


def test_mixed_16gb_by_hundredths_of_the_layers(deeper):
    """A quarter, a half and a quarter of the layers: on 32 they are 8, 16 and 8, on 8 they are 2, 4 and 2."""
    plan = expand("mixed-16gb")
    model = adapted(deeper, plan)
    rows = plan_rows(model, find_parts(model), plan)
    assert [(row[1], row[3]) for row in rows if row[2] == "lora"] == [
        ("language 0-1", "8"),
        ("language 2-5", "16"),
        ("language 6-7", "32"),
    ]
