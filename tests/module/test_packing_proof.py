"""The proof at a fit's start: it passes on what is exact, refuses what isn't, and leaves no trace."""

import copy
import logging

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import GradNorm
from torch.utils.data import DataLoader

from lightning_vlm import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.models.positions import TokenPositions
from lightning_vlm.training.packed_and_alone import prove
from lightning_vlm.training.packing_proof import PackingProof
from lightning_vlm.training.packing_verdict import Verdict
from tests.module.test_packed import (
    FULL,
    LORA,
    PACKED,
    as_one,
    one_off,
    with_swapped_pictures,
    without_axis_of_masks,
    without_restarts,
)
from tests.support.packed import SAMPLES, OfList, batch_of, with_masks
from tests.support.ranks import DDP


@pytest.fixture
def on_samples(module):
    """The proof on samples of a family, whose packed batch something may have broken."""

    def found(family, dtype=torch.float32, attention="auto", broken=lambda batch: batch, **options):
        one = module(family, attn_implementation=attention, **{"adapt": LORA, **options}).to(dtype)
        packed = broken(batch_of(one, SAMPLES, pack=True, dtype=dtype))
        return prove(one, packed, [batch_of(one, [sample], pack=True, dtype=dtype) for sample in SAMPLES])

    return found


@pytest.mark.parametrize("family", PACKED)
def test_each_family_is_proved_in_its_precision(on_samples, family):
    for dtype, attention, far in ((torch.float32, with_masks(family), 1e-6), (torch.bfloat16, "auto", 1e-2)):
        proof = on_samples(family, dtype, attention)
        proof.check()
        assert proof.seen == proof.moved == 0
        assert proof.distances.hidden_states < far


@pytest.mark.parametrize(
    ("family", "attention", "broken", "found"),
    [
        ("qwen2_vl", "sdpa", without_axis_of_masks, "samples see one another"),
        ("qwen3_vl", "sdpa", without_axis_of_masks, "samples see one another"),
        ("internvl", "sdpa", without_restarts, "samples see one another"),
        ("llava", "auto", one_off, "samples see one another"),
        ("qwen2_5_vl", "auto", one_off, "samples see one another"),
        ("smolvlm", "auto", as_one, "samples see one another"),
        ("llava", "sdpa", with_swapped_pictures, "hidden states packed and alone differ by"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_is_broken_is_refused(on_samples, family, attention, broken, found, dtype):
    proof = on_samples(family, dtype, attention, broken)
    with pytest.raises(UserError, match=found) as refused:
        proof.check()
    assert str(refused.value).endswith("; set data.batching to tokens")
    assert len(str(refused.value)) < 400


@pytest.fixture
def packed_data():
    def make(samples=SAMPLES, **options):
        return VLMDataModule(
            train=OfList(samples), **{"batching": "packed", "max_tokens": 400, "shuffle": False, **options}
        )

    return make


def test_a_fit_says_that_it_is_proved(module, make_quiet, packed_data, caplog):
    caplog.set_level(logging.INFO)
    one = module("qwen2_5_vl")
    make_quiet(max_epochs=1).fit(one, packed_data())
    (line,) = [line for line in caplog.messages if line.startswith("Packing")]
    assert line.startswith("Packing proved on 4 samples of the first batch: packed and alone differ by ")
    assert line.endswith("; no sample sees another")


class Broken(TokenPositions):
    """Counts one picture's axes in another order."""

    def __call__(self, example):
        return super().__call__(example).flip(0)


def test_a_fit_with_wrong_positions_stops_before_its_first_step(module, make_quiet, packed_data, monkeypatch):
    monkeypatch.setattr("lightning_vlm.data.rendered.token_positions", lambda model: Broken(model))
    one = module("qwen2_5_vl")
    before = copy.deepcopy(one.model.state_dict())
    with pytest.raises(UserError, match="4 samples of the first batch tokens have other positions"):
        make_quiet(max_epochs=1).fit(one, packed_data())
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())


class Trace(Callback):
    """What a fit looks like before its first batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.rng = torch.get_rng_state()
            self.modes = [part.training for part in pl_module.modules()]
            self.gradients = [weight.grad for weight in pl_module.parameters()]
            self.hooks = sum(len(part._forward_pre_hooks) for part in pl_module.modules())
            self.deltas = getattr(pl_module.model.model, "rope_deltas", None)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_it_leaves_no_trace(module, make_quiet, packed_data, monkeypatch, family):
    weights, traces = [], []
    for proves in (True, False):
        if not proves:
            monkeypatch.setattr(PackingProof, "on_train_start", lambda *_: None)
        one = module(family, adapt={"language": {"lora": {"dropout": 0.3}}, "projector": "full"})
        trace = Trace()
        torch.manual_seed(1)
        make_quiet(max_epochs=2, callbacks=[trace]).fit(one, packed_data())
        traces.append(trace)
        weights.append(one.state_dict())
    with_proof, without = traces
    assert torch.equal(with_proof.rng, without.rng)
    assert with_proof.modes == without.modes
    assert not any(gradient is not None for gradient in with_proof.gradients)
    assert with_proof.hooks == without.hooks
    assert with_proof.deltas is None
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_with_dropout_and_checkpointing_and_gradnorm(module, make_quiet, packed_data, caplog):
    caplog.set_level(logging.INFO)
    one = module(
        "llava",
        adapt=FULL | {"language": {"lora": {"dropout": 0.5}}},
        gradient_checkpointing=True,
        no_gradient_needed=["vision.layers[-1]", "model.model.vision_tower.post_layernorm"],
    )
    trainer = make_quiet(max_epochs=1, precision="bf16-mixed", callbacks=[GradNorm()])
    trainer.fit(one, packed_data())
    assert any(line.startswith("Packing proved") for line in caplog.messages)


def test_samples_that_share_no_row_prove_nothing(module, make_quiet, packed_data, caplog):
    caplog.set_level(logging.INFO)
    make_quiet(max_epochs=1).fit(module("llava"), packed_data(SAMPLES[:2], max_tokens=40))
    assert any("Packing has nothing to prove" in line for line in caplog.messages)


def test_packed_batches_from_elsewhere_are_not_proved(module, make_quiet):
    one = module("llava")
    batch = batch_of(one, SAMPLES, pack=True, dtype=torch.float32)
    with pytest.warns(UserWarning, match="Packing is not proved"):
        make_quiet(max_steps=1).fit(one, DataLoader([batch], batch_size=None))


def test_nothing_is_compiled_for_it(on_samples):
    counters = torch._dynamo.utils.counters
    counters.clear()
    on_samples("llava", compile=True).check()
    assert not counters["stats"]


@pytest.mark.parametrize(("family", "most"), [("gemma3", 400), ("mllama", 400), ("mllama", "auto")])
def test_families_that_cant_be_exact_train_by_tokens(module, make_quiet, packed_data, caplog, family, most):
    caplog.set_level(logging.INFO)
    data = packed_data([sample for sample in SAMPLES if sample.images], shuffle=True, max_tokens=most)
    one = module(family)
    one.unload_model()  # as in a run, where data are set up before the model is loaded
    make_quiet(max_epochs=1).fit(one, data)
    lines = [line for line in caplog.messages if "packed" in line]
    assert len(lines) == 1
    assert lines[0].startswith("data.batching: packed can't be exact for ")
    assert lines[0].endswith("; samples are batched by tokens instead")
    assert data.batching.mode == "tokens"


def test_each_rank_proves_it_on_the_samples_of_the_first(module, make_quiet, packed_data, on_two_ranks):
    def on_a_rank():
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addHandler(handler)
        found = []
        check = Verdict.check
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Verdict, "check", lambda verdict: found.append(verdict) or check(verdict))
            make_quiet(max_epochs=1, **DDP).fit(module("llava"), packed_data(max_tokens=150))
        (verdict,) = found
        return [line for line in lines if line.startswith("Packing")], verdict.samples, [*verdict.distances]

    (said, samples, distances), (of_second, *others) = on_two_ranks(on_a_rank)
    assert len(said) == 1
    assert not of_second
    assert others == [samples, distances]
