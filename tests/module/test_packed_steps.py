"""Steps of samples that share a row are those of the same samples with a row each, whatever watches them."""

import dataclasses
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import AdaptiveLoRARank, GradNorm

from lightning_vlm import ScheduledSampling, TokenWeightSchedule, VLMDataModule
from lightning_vlm.data.batch.lengths import measure
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.models.experts import mixtures_of
from lightning_vlm.optim import Constant
from tests.module.test_tasks import PLAN, TASKS, Keep, KeepNorms, by_hand, end, off
from tests.support import tiny
from tests.support.packed import PACKED, OfList, picture
from tests.support.pictures import NEEDS_PICTURES, with_its_pictures

WEIGHTS = {"vqa": 3.0, "ocr": 0.5}
KINDS = {"special": 0.3, "instruction": 0.2}
"""Weights with which the first token of a sample, which nothing predicts, would count."""


class Data(VLMDataModule):
    """The same samples in the same batches, with a row for all or a row for each."""

    def __init__(self, pack, **options):
        super().__init__(**options)
        self.pack = pack

    def rendered(self, split, **options):
        found = super().rendered(split, **options)
        found.packs = self.pack
        return found


@pytest.fixture(scope="module")
def source(listed, words):
    """20 samples of three tasks in turn, of uneven weight and length, with pictures and without."""
    drawn = list(Drawn("train", size=20, seed=5))
    items = []
    for at, one in enumerate(drawn):
        turns = tuple(message for message in one.messages if message.role != "system")
        if at % 5 == 3:
            turns = words(answer="Red and blue. " * (1 + at % 4)).messages
        items.append(dataclasses.replace(one, messages=turns, task=TASKS[at % 3], weight=0.5 + at % 2))
    return listed(items)


@pytest.fixture(scope="module")
def run(module, make_quiet, source):
    """A fit whose samples share rows or have their own."""

    def fit(pack, family="llava", accumulate=1, callbacks=(), data=(), options=(), **trainer):
        given = {"adapt": PLAN, "schedule": Constant(), "clip": 0.5, "task_weights": WEIGHTS}
        given |= {"token_weights": KINDS, **dict(options)}
        train = source
        if family in NEEDS_PICTURES:
            train = OfList(with_its_pictures(family, each, picture(32, 32, 9)) for each in source)
        one = module(family, optimizer=partial(torch.optim.SGD, lr=0.2), **given)
        with torch.no_grad():
            for at, (name, weight) in enumerate(one.named_parameters()):
                if "lora_B" in name:
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(at))
        keep, see = Keep(), See()
        keep.start = end(one)
        batches = Data(pack, **{"train": train, "batch_size": 3, **dict(data)})
        made = make_quiet(
            callbacks=[*callbacks, keep, see],
            accumulate_grad_batches=accumulate,
            **{"max_epochs": 3, **trainer},
        )
        made.fit(one, batches)
        keep.end, keep.batches = end(one), see.batches
        return keep

    return fit


class See(Callback):
    """The batches as steps have them."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        inputs = {name: value.clone() for name, value in batch.inputs.items()}
        self.batches.append(batch._replace(inputs=inputs))


def assert_same_training(found, expected):
    """Float32 to rounding: sums of each step, its gradient, and how far weights have moved."""
    assert len(found.steps) == len(expected.steps)
    assert any(batch.is_packed for batch in found.batches)
    assert not any(batch.is_packed for batch in expected.batches)
    for one, other in zip(found.steps, expected.steps, strict=True):
        torch.testing.assert_close(one.loss, other.loss, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(one.sums, other.sums, rtol=2e-5, atol=1e-4)
        torch.testing.assert_close(one.counts, other.counts)
    assert off(found.gradients[0], expected.gradients[0]) < 2e-6
    moves = [
        {name: one.end[name] - weight for name, weight in one.start.items()} for one in (found, expected)
    ]
    assert off(*moves) < 2e-5


@pytest.fixture(scope="module")
def rows_of(processor_of, source):
    """Rows as full as can be, of uneven numbers of samples."""

    def options(family):
        renderer = Renderer(processor_of(family, None if tiny.FAMILIES[family].template else "plain"))
        longest = int(measure(source, renderer).tokens.max())
        return {"batching": "packed", "max_tokens": int(1.8 * longest), "seed": 3}

    return options


@pytest.mark.parametrize(("family", "accumulate"), [("llava", 1), ("llava", 3), ("qwen2_5_vl", 2)])
def test_twenty_steps(run, rows_of, family, accumulate):
    """Tasks and samples of uneven weight, Σwℓ/Σw over windows of uneven numbers of samples."""
    options = {"accumulate": accumulate, "data": rows_of(family), "max_epochs": -1, "max_steps": 20}
    packed, padded = (run(pack, family, **options) for pack in (True, False))
    assert len(packed.steps) == 20
    assert len({len(batch.tasks) for batch in packed.batches}) > 1
    assert_same_training(packed, padded)


@pytest.mark.parametrize("balanced", [False, True], ids=["fixed", "GradNorm"])
def test_two_ranks(run, rows_of, on_two_ranks, balanced):
    """Against one that accumulates two batches; there is an odd number of them, so one of a rank is empty."""
    rows = rows_of("llava")

    def fit(pack, **options):
        callbacks = [GradNorm()] if balanced else []
        weights = {"task_weights": None} if balanced else {}
        return run(pack, data=rows, callbacks=callbacks, options=weights, **options)

    def on_rank():
        found = fit(True, strategy="ddp", devices=2)
        counts = torch.tensor([len(batch.tasks) for batch in found.batches])
        return [found.end, found.gradients[0], sums_of(found), counts]

    whole = fit(False, accumulate=2)
    moved = {name: whole.end[name] - weight for name, weight in whole.start.items()}
    first, second = on_two_ranks(on_rank)
    assert 0 in second[3]
    assert first[3].sum() + second[3].sum() == 60
    for name, weight in first[0].items():
        assert torch.equal(weight, second[0][name])
    assert off(first[1], whole.gradients[0]) < 2e-6
    assert off({name: first[0][name] - weight for name, weight in whole.start.items()}, moved) < 2e-5
    torch.testing.assert_close(first[2], sums_of(whole), rtol=2e-5, atol=1e-4)


def sums_of(keep):
    return torch.stack([torch.cat((step.loss[None], step.sums, step.counts)) for step in keep.steps])


@pytest.mark.parametrize(
    ("family", "options", "layer"),
    [
        *((family, {}, None) for family in PACKED),
        ("qwen2_5_vl", {"gradient_checkpointing": True}, None),
        (
            "llava",
            {"adapt": {"language": "full", "projector": "full"}},
            "language.layers[0].self_attn.o_proj",
        ),
    ],
)
def test_gradnorm_measures_autograds_norms(run, module, family, options, layer):
    """Of each task's loss alone, where its samples have rows of their own."""
    options = {"task_weights": None, **options}
    gradnorm = GradNorm(layer=layer)
    keep = KeepNorms(gradnorm)
    packed = run(True, family, callbacks=[gradnorm, keep], options=options, max_steps=2)
    padded = run(False, family, options=options, max_steps=2)
    assert all(batch.is_packed for batch in packed.batches)
    plain = module(
        family, **{"adapt": PLAN, "token_weights": KINDS, **options, "gradient_checkpointing": False}
    )
    weights = dict(plain.named_parameters())
    if layer is None:
        beside_experts = tuple(f"model.{mixture.path}." for mixture in mixtures_of(plain.model))
        names = [name for name in weights if "lora_B" in name and not name.startswith(beside_experts)]
        name = [name for name in names if weights[name].requires_grad][-1]
    else:
        (name,) = (name for name in weights if name.endswith("layers.0.self_attn.o_proj.weight"))
    for before, batch, norms in zip(keep.before, padded.batches, keep.norms, strict=True):
        plain.load_state_dict(before, strict=False)
        sums, counts = by_hand(plain, batch)
        for at, task in enumerate(TASKS):
            if task in batch.tasks:
                loss = sums[at] / counts.sum()
                (gradient,) = torch.autograd.grad(loss, weights[name], retain_graph=True)
                torch.testing.assert_close(norms[at], gradient.norm(), rtol=2e-4, atol=1e-6, msg=name)


PARTS = {
    "ia3": {"language": "ia3"},
    "dora": {"language": {"lora": {"r": 2, "dora": True}}},
    "bottlenecks": {"language.layers[0]": "adapter", "language.layers[1]": {"adapter": {"kind": "parallel"}}},
    "cross-modal": {"language": "cross_modal_adapter", "projector": "full"},
    "tower": {"vision.layers[:-1]": {"lora": {"r": 2}}, "projector": "full"},
    "all": {"language": "full", "projector": "full", "vision.layers[:-1]": "full"},
}


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        *(("llava", plan) for plan in (*PARTS, "new tokens")),
        ("qwen2_5_vl", "cross-modal"),
        ("qwen2_5_vl", "all"),
    ],
)
def test_whatever_trains(run, family, plan):
    options = {"adapt": PARTS.get(plan, PLAN)}
    if plan == "new tokens":
        options["new_tokens"] = ["red", "blue"]
    packed, padded = (run(pack, family, options=options, max_steps=4) for pack in (True, False))
    assert_same_training(packed, padded)


OTHERS = {
    "GradNorm": (GradNorm, {"task_weights": None}),
    "uncertainty": (None, {"task_weights": "uncertainty"}),
    "initial losses": (None, {"task_weights": "inverse_initial_loss"}),
    "TokenWeightSchedule": (partial(TokenWeightSchedule, between="linear"), {}),
}


@pytest.mark.parametrize("way", OTHERS)
def test_weights_change_alike(run, way):
    """Of tasks and of kinds of tokens."""
    make, options = OTHERS[way]
    packed, padded = (
        run(pack, callbacks=[make()] if make else [], accumulate=2, options=options, max_epochs=2)
        for pack in (True, False)
    )
    assert_same_training(packed, padded)
    for one, other in zip(packed.weights, padded.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    counts = torch.stack([step.counts for step in packed.steps])
    changed = counts[0] - counts[4] if way == "TokenWeightSchedule" else packed.weights[-1] - 1
    assert changed.abs().max() > 1e-4


@pytest.mark.parametrize("predictions", ["likeliest", "drawn"])
def test_scheduled_sampling_replaces_the_same_tokens(run, predictions):
    packed, padded = (
        run(pack, callbacks=[ScheduledSampling(0.7, "constant", predictions=predictions)], max_steps=4)
        for pack in (True, False)
    )
    plain = run(True, max_steps=1)
    for one, other in zip(packed.batches, padded.batches, strict=True):
        rows = [row[:length] for row, length in zip(other.inputs["input_ids"], one.lengths, strict=True)]
        assert torch.equal(one.inputs["input_ids"][0], torch.cat(rows))
    assert not torch.equal(plain.batches[0].inputs["input_ids"], packed.batches[0].inputs["input_ids"])
    assert_same_training(packed, padded)


@pytest.mark.parametrize("importance", ["fisher", "sensitivity", "activation"])
def test_ranks_go_where_they_would_have_gone(run, importance):
    """Importance is of the same samples: a row that several share is no sample."""
    found = []
    # What goes into padding is an activation too, so there it is each sample alone that is right.
    alone = {"data": {"batch_size": 1}, "accumulate": 3} if importance == "activation" else {}
    for pack, split in ((True, {}), (False, alone)):
        rank = AdaptiveLoRARank(importance=importance, start=6, every=2, until=6, min_rank=1, multiple_of=1)
        run(pack, callbacks=[rank, KeepImportance(rank, found)], max_steps=6, **split)
        found[-1]["ranks"] = rank._history[-1][1]
    packed, padded = found
    assert packed.pop("ranks") == padded.pop("ranks")
    assert packed.keys() == padded.keys()
    for name, tensors in padded.items():
        for one, other in zip(packed[name], tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item(), msg=name)


class KeepImportance(Callback):
    """What was measured, right before ranks change."""

    def __init__(self, rank, found):
        self.rank = rank
        found.append({})
        self.found = found[-1]

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        kept = self.rank._importance.kept
        self.found |= {name: [tensor.clone() for tensor in tensors] for name, tensors in kept.items()}
