"""The figures of docs/plan.md on a model of seven billion weights, against closed forms."""

import re
from pathlib import Path

import pytest
import torch

from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.choice import micro_batches, scaled_learning_rate
from lightning_vlm.planning.methods import ORDERS, Fit, compared, pick
from lightning_vlm.planning.quantised import nf4_bytes
from lightning_vlm.planning.step import Method, skeleton, storage_bytes
from tests.support.seven_billion import llava_7b

TEXT = (Path(__file__).parents[2] / "docs" / "plan.md").read_text("utf-8")
PROJECTOR = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
LINEAR = [(4096, 4096)] * 4 + [(4096, 11008)] * 3
"""The linear layers of each of the 32 blocks."""


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A method on the model's shape, without weights."""
    module = VLMModule(str(llava_7b(tmp_path_factory.mktemp("llava_7b"))))
    return lambda method: skeleton(module.source, method, "bf16-mixed")


def trained(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("rank", [8, 16, 64])
def test_what_a_rank_trains(shape, rank):
    model = shape(compared()[f"lora r={rank}"])
    expected = PROJECTOR + 32 * rank * sum(a + b for a, b in LINEAR)
    assert trained(model) == expected
    if rank != 8:
        assert f"{expected / 1e6:.1f}M" in TEXT


def test_what_four_bits_weigh(shape):
    full, four = shape(compared()["lora r=16"]), shape(compared()["qlora r=16"])
    layers = 32 * sum(nf4_bytes(a * b) - 2 * a * b for a, b in LINEAR)
    assert storage_bytes([*four.parameters()]) - storage_bytes([*full.parameters()]) == layers
    assert 13 < storage_bytes([*full.parameters()]) / 2**30 < 13.5


def test_a_mix_of_ranks(shape):
    """The seventh exercise: 8 in the first quarter, 32 in the last, 16 between; the projector in full."""
    model = shape(Method("mixed", expand("mixed-16gb"), Quantization()))
    ranks = 8 * 8 + 16 * 16 + 8 * 32
    expected = PROJECTOR + ranks * sum(a + b for a, b in LINEAR)
    assert trained(model) == expected
    assert f"{expected / 1e6:.1f}M" in TEXT
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}


def test_two_at_a_time_and_32_a_step():
    """The fourth exercise."""
    assert micro_batches(32, 2) == (2, 16)
    assert scaled_learning_rate(2e-4, 32) == 2e-4  # accumulation alone changes nothing
    assert scaled_learning_rate(2e-4, 2) == 5e-5


def test_the_tree():
    tight = {"full": Fit(0, 0), "lora r=64": Fit(0, 0), "lora r=16": Fit(0, 0), "qlora r=64": Fit(0, 3)}
    assert pick("quality", tight, 8)[:2] == ("qlora r=64", True)
    roomy = dict.fromkeys(ORDERS["quality"], Fit(9, 30)) | {"adapter": Fit(9, 30)}
    assert pick("quality", roomy, 8)[:2] == ("full", False)
    assert pick("merge", roomy, 8)[:2] == ("lora r=16", False)
    assert pick("swap", roomy, 8)[:2] == ("adapter", False)
    assert pick("merge", roomy, 10)[:2] == ("lora r=16", True)
    assert pick("merge", {"lora r=16": Fit(0, 0)}, 8).name is None


def test_the_page_lists_what_is_tried():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (.*) \|$", TEXT, re.MULTILINE)
    words = {"own": "as configured", "projector": "the projector alone", "adapter": "adapters"}
    for aim, tried in rows:
        names = [
            words.get(name, name.replace("qlora", "QLoRA").replace("lora", "LoRA")) for name in ORDERS[aim]
        ]
        assert tried == ", ".join(names)
    assert len(rows) == len(ORDERS)
