"""However a step is split over micro-batches and ranks, it has the gradient and the loss of one big batch."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Constant
from tests.support import tiny
from tests.support.pictures import NEEDS_PICTURES

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}, "vision.layers[0:2]": {"lora": {"r": 4}}}
SPLITS = {"whole": (8, 1), "accumulated": (4, 2), "one by one": (1, 8)}
"""Samples in a batch of one device, and micro-batches in a step."""
RANKS = {"ranks": (4, 1), "ranks, accumulated": (2, 2), "one by one on ranks": (1, 4)}


class Record(Callback):
    """What other callbacks see of each step: the gradient before clipping, and the loss."""

    def __init__(self):
        self.gradients, self.losses, self.norms = [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.requires_grad})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.losses):
            self.losses.append(trainer.callback_metrics["train/loss"].item())
            self.norms.append(trainer.callback_metrics["train/grad_norm"].item())


def conversations(words):
    """21 samples of uneven length and weight, pictures and text; the middle ones text alone, or weightless.

    21 is 2 steps of 8 and one of 5, so that of 2 ranks × 4 the second gets 1 sample, of 8 × 1 a whole
    micro-batch is empty or missing.
    """
    drawn = list(Drawn("train", size=21, seed=3))
    samples = [dataclasses.replace(one, weight=0.5 + at % 3) for at, one in enumerate(drawn)]
    samples[4:8] = [words(answer="Red and blue. " * (1 + at), weight=2.0) for at in range(4)]
    samples[9] = dataclasses.replace(drawn[9], weight=0.0)
    samples[17] = dataclasses.replace(drawn[17], weight=0.0)
    return samples


def run(make_trainer, module, source, batch_size, accumulate, **options):
    """Two epochs with plain SGD, whose update is the gradient."""
    data = VLMDataModule(train=source, val=source, batch_size=batch_size, shuffle=False, max_length=400)
    record = Record()
    trainer = make_trainer(
        max_epochs=2,
        check_val_every_n_epoch=2,
        accumulate_grad_batches=accumulate,
        callbacks=[record],
        **options,
    )
    trainer.fit(module, data)
    weights = {name: one.detach().clone() for name, one in module.named_parameters()}
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}
    return {
        "gradients": record.gradients,
        "losses": record.losses,
        "norms": record.norms,
        "weights": weights,
        "scores": scores,
        "steps": trainer.global_step,
    }


@pytest.fixture(scope="module")
def fresh(module):
    def make(**options):
        given = {"adapt": PLAN, "schedule": Constant(), "clip": 0.5, **options}
        one = module("llava", optimizer=partial(torch.optim.SGD, lr=0.3), **given)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for name, parameter in one.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=generator)
        return one

    return make


@pytest.fixture(scope="module")
def source(listed, words):
    return listed(conversations(words))


@pytest.fixture(scope="module")
def on_ranks(fresh, source, make_quiet, on_two_ranks):
    """What two real processes made of the same run: name -> the results of both."""

    def on_rank():
        return {
            name: run(make_quiet, fresh(), source, *split, strategy="ddp", devices=2)
            for name, split in RANKS.items()
        }

    ranks = on_two_ranks(on_rank)
    return {name: [results[name] for results in ranks] for name in RANKS}


@pytest.fixture(scope="module")
def whole(fresh, source, make_quiet):
    return run(make_quiet, fresh(), source, *SPLITS["whole"])


def off(found, expected):
    """Relative distance of two sets of tensors."""
    assert found.keys() == expected.keys()
    apart = sum((found[name].double() - expected[name].double()).square().sum() for name in expected)
    return (apart / sum(one.double().square().sum() for one in expected.values())).sqrt().item()


def assert_same(found, whole, start):
    assert found["steps"] == whole["steps"] == 6
    for step, (ours, theirs) in enumerate(zip(found["gradients"], whole["gradients"], strict=True)):
        assert off(ours, theirs) < (1e-5 if step else 2e-6)  # later ones begin at rounded weights
    assert found["losses"] == pytest.approx(whole["losses"], rel=3e-6)
    assert found["norms"] == pytest.approx(whole["norms"], rel=1e-5)
    moved = {name: whole["weights"][name] - one for name, one in start.items()}
    ours = {name: found["weights"][name] - one for name, one in start.items()}
    assert off(ours, moved) < 5e-6
    assert found["scores"] == pytest.approx(whole["scores"], rel=1e-5)


@pytest.fixture(scope="module")
def start(fresh):
    return {name: one.detach().clone() for name, one in fresh().named_parameters()}


def test_whole_batches_have_the_gradient_of_the_mean(whole, fresh, source, batch_of, listed):
    """The first step by hand: one big batch, its loss divided by its weight, then clipped."""
    one = fresh()
    sums = one.loss_sums(batch_of(one, listed(source.items[:8])))
    loss = sums.loss_sum / sums.weight_sum
    loss.backward()
    expected = {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
    assert off(whole["gradients"][0], expected) < 1e-6
    assert whole["losses"][0] == pytest.approx(loss.item(), rel=1e-6)
    norm = torch.nn.utils.get_total_norm(expected.values()).item()
    assert whole["norms"][0] == pytest.approx(norm, rel=1e-6)
    assert norm > 0.5, "else clipping has nothing to do"


@pytest.mark.parametrize("split", ["accumulated", "one by one"])
def test_accumulation(whole, fresh, source, make_quiet, start, split):
    assert_same(run(make_quiet, fresh(), source, *SPLITS[split]), whole, start)


@pytest.mark.parametrize("split", RANKS)
def test_ranks(on_ranks, whole, start, split):
    first, second = on_ranks[split]
    assert_same(first, whole, start)
    for name, one in first["weights"].items():
        assert torch.equal(one, second["weights"][name]), name


def test_frozen_parameters_stay_bit_for_bit(whole, fresh, start):
    frozen = [name for name, one in fresh().named_parameters() if not one.requires_grad]
    assert len(frozen) > 20
    assert all(torch.equal(whole["weights"][name], start[name]) for name in frozen)


def test_updates_are_those_of_clipped_gradients(whole, start):
    expected = {name: copy.deepcopy(one) for name, one in start.items()}
    for gradients, norm in zip(whole["gradients"], whole["norms"], strict=True):
        for name, gradient in gradients.items():
            expected[name] -= 0.3 * gradient * min(1.0, 0.5 / norm)
    assert off(whole["weights"], expected) < 1e-6


def test_batches_that_lost_all_samples(fresh, source, make_quiet, listed, words, whole):
    """Samples too long are left out: the rest weighs as if they had never been there."""
    long = words(answer="red " * 4000, source="long")
    kept = source.items[:3]
    spoiled = run(make_quiet, fresh(), listed([*kept[:2], long, long, kept[2], long]), 2, 3)
    clean = run(make_quiet, fresh(), listed(kept), 3, 1)
    assert spoiled["steps"] == clean["steps"] == 2
    assert off(spoiled["weights"], clean["weights"]) < 1e-6


def test_bfloat16_autocast(fresh, source, make_quiet, whole):
    found = run(make_quiet, fresh(), source, *SPLITS["accumulated"], precision="bf16-mixed")
    assert found["losses"] == pytest.approx(whole["losses"], rel=2e-2)
    assert off(found["gradients"][0], whole["gradients"][0]) < 0.05


def first_gradient(make_trainer, module, listed, words, family, batch_size, accumulate, **options):
    """Of one step over five samples, on a new module of the family."""
    drawn = Drawn("train", size=30, tasks=["vqa", "caption"], seed=2)
    samples = [one for one in drawn if one.messages[0].role == "user"][:5]
    if family not in NEEDS_PICTURES:
        samples[2] = words(answer="Red and blue. " * 9, weight=2.0)
    record = Record()
    trainer = make_trainer(max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[record], **options)
    one = module(family, optimizer=partial(torch.optim.SGD, lr=0.1), adapt={"language": "full"})
    trainer.fit(one, VLMDataModule(train=listed(samples), batch_size=batch_size, shuffle=False))
    return record.gradients[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_family(make_quiet, module, listed, words, folder, on_two_ranks, family):
    """At once, two by two (the last alone), one by one, and on two ranks."""
    folder(family)  # before the processes part
    parts = (make_quiet, module, listed, words, family)

    def on_rank():  # of three micro-batches; one of those is empty
        return first_gradient(*parts, 1, 3, strategy="ddp", devices=2)

    whole = first_gradient(*parts, 5, 1)
    most = 3e-6 if family.startswith("gemma4") else 1e-6  # whose embeddings are scaled up
    assert off(first_gradient(*parts, 2, 3), whole) < most
    assert off(first_gradient(*parts, 1, 5), whole) < most
    for rank in on_two_ranks(on_rank):
        assert off(rank, whole) < most
