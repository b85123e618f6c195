"""What trains is kept exact enough to learn, and what doesn't as it is used."""

import shutil
from functools import partial

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models import precision
from lightning_vlm.optim import Constant
from tests.support import tiny
from tests.support.tiny.moe import MIXTURES

LORA = {"projector": "full", "language": {"lora": {"r": 4}}}


@pytest.fixture(scope="module")
def in_16_bits(model_folder, tmp_path_factory):
    """The tiny model of a family as it would be published: its weights in bfloat16."""

    def folder(family):
        made = tmp_path_factory.mktemp(family)
        shutil.copytree(model_folder(family), made, dirs_exist_ok=True)
        model = AutoModelForImageTextToText.from_pretrained(made, dtype=torch.bfloat16)
        model.save_pretrained(made)
        return made

    return folder


@pytest.fixture
def fit(make_quiet):
    """Fit a model of a folder for some steps; the module, and what it was before."""

    def run(folder, steps=2, lr=1e-3, precision="bf16-mixed", **options):
        torch.manual_seed(0)
        options = {"adapt": LORA, "optimizer": partial(torch.optim.AdamW, lr=lr), **options}
        one = VLMModule(str(folder), schedule=Constant(), chat_template="plain", **options)
        data = VLMDataModule(train=Drawn("train", size=4), batch_size=2, processor=one.processor)
        make_quiet(max_steps=steps, precision=precision).fit(one, data)
        return one

    return run


def dtypes(module, *, trains):
    return {one.dtype for one in module.parameters() if one.requires_grad == trains}


@pytest.mark.parametrize("adapt", ["full", LORA])
def test_what_trains_is_float32_under_mixed_precision(adapt, in_16_bits, fit, recwarn):
    one = fit(in_16_bits("smolvlm"), adapt=adapt)
    assert dtypes(one, trains=True) == {torch.float32}
    assert dtypes(one, trains=False) == (set() if adapt == "full" else {torch.bfloat16})
    state = one.trainer.optimizers[0].state.values()
    assert {value["exp_avg"].dtype for value in state} == {torch.float32}
    assert not [line for line in recwarn if "is kept in" in str(line.message)]


def test_small_changes_are_not_lost(in_16_bits, fit):
    """A weight of 1 has a neighbour in bfloat16 at 1.008; a step of AdamW changes it by about 1e-5 here."""
    folder = in_16_bits("smolvlm")
    before = dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())
    shares = []
    for chosen in ("bf16-mixed", "bf16-true"):
        one = fit(folder, adapt="full", lr=1e-5, steps=1, precision=chosen)
        norms = [
            name for name in before if "norm" in name and name.endswith("weight") and "text_model" in name
        ]
        same = [(one.model.get_parameter(name) == before[name]).float().mean().item() for name in norms]
        shares.append(sum(same) / len(same))
    mixed, half = shares
    assert mixed < 0.1
    assert half > 0.9


@pytest.mark.parametrize("chosen", ["bf16-true", "32-true"])
def test_what_it_costs_otherwise_is_said(chosen, in_16_bits, fit):
    expected = r"100% of what trains is kept in bfloat16, where changes of less than 0\.2%"
    with pytest.warns(UserWarning, match=expected):
        fit(in_16_bits("smolvlm"), precision=chosen, adapt="full", steps=1)


def test_a_dtype_that_is_asked_for_is_kept(in_16_bits, model_folder, fit):
    with pytest.warns(UserWarning, match="is kept in bfloat16"):
        one = fit(in_16_bits("smolvlm"), dtype="bfloat16", adapt="full", steps=1)
    assert dtypes(one, trains=True) == {torch.bfloat16}
    one = fit(model_folder("smolvlm"), dtype="float32", steps=1)
    assert dtypes(one, trains=False) == {torch.float32}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_frozen_weights_in_16_bits_give_the_same_to_the_bit(family, module, batch_of):
    """Autocast would turn each of them at each use."""
    plain, kept = (module(family, adapt=LORA).train() for _ in range(2))
    precision.keep_weights(kept.model, torch.bfloat16)
    sizes = [sum(one.numel() * one.element_size() for one in each.parameters()) for each in (plain, kept)]
    assert sizes[1] < sizes[0]
    assert dtypes(kept, trains=True) == {torch.float32}
    batch = batch_of(plain, size=2)
    results = []
    for one in (plain, kept):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = one.loss_sums(batch).loss_sum
        loss.backward()
        gradients = {name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None}
        results.append((loss.detach(), gradients))
    if family in MIXTURES:  # autocast doesn't reach products by group, so that float32 experts stay exact
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=0)
        return
    assert torch.equal(results[1][0], results[0][0])
    assert results[1][1].keys() == results[0][1].keys()
    for name, gradient in results[1][1].items():
        assert torch.equal(gradient, results[0][1][name]), name


PLANS = {
    "tower": {"vision": "full", "language": {"lora": {"r": 4}}},
    "some layers": {"projector": "full", "language.layers[-1:]": "full"},
    "language": {"language": "full"},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("plan", PLANS)
def test_each_family_computes_with_both(plan, family, module, batch_of):
    """Its weights are in bfloat16, but for those that train."""
    exact = module(family, adapt=PLANS[plan]).train()
    one = module(family, adapt=PLANS[plan]).train()
    one.model.bfloat16()
    precision.keep_weights(one.model, torch.bfloat16)
    assert dtypes(one, trains=True) == {torch.float32}
    batch = batch_of(one, size=2)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = one.loss_sums(batch).loss_sum
    loss.backward()
    torch.testing.assert_close(loss, exact.loss_sums(batch).loss_sum, rtol=0.01, atol=0)
    assert {weight.grad.dtype for weight in one.parameters() if weight.grad is not None} == {torch.float32}


def test_new_tokens_and_dora_train_as_before(in_16_bits, fit):
    plan = {"projector": "full", "language": {"lora": {"r": 4, "dora": True}}}
    one = fit(in_16_bits("smolvlm"), adapt=plan, new_tokens=["<here>", "<there>"])
    assert dtypes(one, trains=True) == {torch.float32}


def test_resumed_and_loaded(in_16_bits, fit, make_quiet, tmp_path):
    one = fit(in_16_bits("smolvlm"), adapt="full", steps=1)
    one.trainer.save_checkpoint(tmp_path / "x.ckpt")
    data = VLMDataModule(train=Drawn("train", size=4), batch_size=2, processor=one.processor)
    again = VLMModule(one.name_or_path, schedule=Constant(), chat_template="plain", adapt="full")
    again.optimizer = one.optimizer
    trainer = make_quiet(max_steps=2, precision="bf16-mixed")
    trainer.fit(again, data, ckpt_path=tmp_path / "x.ckpt")
    whole = fit(in_16_bits("smolvlm"), adapt="full", steps=2)
    for (name, weight), expected in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, expected), name
