"""What a plan counts without weights is what a step with weights takes, by the records of the allocator."""

import pytest
import torch

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.quantised import int8_bytes, nf4_bytes
from lightning_vlm.planning.samples import batches_of
from lightning_vlm.planning.step import CountedStep, Method, skeleton
from tests.support.real_steps import RealStep

CASES = [
    ("shipped", "full", "32-true", False),
    ("shipped", "lora", "bf16-mixed", True),
    ("qwen2_5_vl", "lora", "32-true", False),
    ("smolvlm", "full", "32-true", True),
    ("qwen3_vl_moe", "lora", "32-true", False),
]


@pytest.mark.parametrize(("family", "plan", "precision", "recompute"), CASES)
def test_the_peak_is_that_of_a_real_step(model_folder, family, plan, precision, recompute):
    module = VLMModule(str(model_folder(family)), adapt=plan)
    data = VLMDataModule(train=Drawn(size=8))
    data.processor = module.processor
    model = skeleton(module.source, Method(plan, module.adapt), precision)
    assert {one.device.type for one in model.parameters()} == {"meta"}
    step = CountedStep(model, precision, module.optimizer, accumulates=False)
    step.recompute(recompute)
    batch = batches_of(data, model, 0, module.targets)(8)
    counted = step(batch)
    if precision != "32-true":
        module._trainer = type("Trainer", (), {"precision": precision})()
    weights, states, peak = RealStep(module, precision).measure(batch, recompute)
    assert (counted.weights, counted.states) == (weights, states)
    assert counted.step == pytest.approx(peak, rel=0.02)


def test_quantised_weights_take_what_bitsandbytes_takes():
    functional = pytest.importorskip("bitsandbytes").functional
    weights = torch.randn(512, 300)
    for double in (True, False):
        packed, state = functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=double)
        held = packed.nbytes + state.absmax.nbytes
        if double:
            held += state.state2.absmax.nbytes + state.offset.nbytes
        assert nf4_bytes(weights.numel(), double) == held
    assert int8_bytes(512, 300) == 512 * 300 + 512 * 4


def test_what_is_quantised_is_counted_so():
    module = VLMModule("drawn-vlm", adapt="qlora")
    method = Method("qlora", module.adapt, Quantization())
    model = skeleton(module.source, method, "32-true")
    held = sum(weight.nbytes for weight in model.parameters())
    module.configure_model()
    real = 0
    for weight in module.model.parameters():
        state = getattr(weight, "quant_state", None)
        real += weight.nbytes
        if state is not None:
            real += state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
    assert held == real


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_on_quantised_weights(recompute):
    module = VLMModule("drawn-vlm", adapt="qlora")
    data = VLMDataModule(train=Drawn(size=8))
    data.processor = module.processor
    model = skeleton(module.source, Method("qlora", module.adapt, Quantization()), "32-true")
    step = CountedStep(model, "32-true", module.optimizer, accumulates=False)
    step.recompute(recompute)
    batch = batches_of(data, model, 0, module.targets)(16)
    _, states, peak = RealStep(module).measure(batch, recompute)
    counted = step(batch)
    assert counted.states == states
    assert counted.step == pytest.approx(peak, rel=0.05)
