"""The proof that packing changes nothing: loss, gradients and token losses of packed samples are those that
each gets alone, and no sample sees its neighbours.

In float64 packed and alone agree to 1e-10, which no leak and no wrong position would. What transformers
computes in float32 all the same (norms, rotary embeddings) is computed for each token by itself, so that it
comes out alike.
"""

import pytest
import torch
import torch.nn.functional as F
from lightning_vlm_callbacks.modes import set_modes

from lightning_vlm.data.batch.collate import Sequences, Targets
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.models.attention import takes_lengths
from tests.support.packed import (
    PACKED,
    SAMPLES,
    alone,
    batch_of,
    distance,
    gradients_of,
    picture,
    step,
    summed,
    talk,
    with_masks,
)
from tests.support.tiny.moe import MIXTURES

FULL = {"vision": "full", "projector": "full", "language": "full", "head": "full"}
LORA = {"vision.layers": "lora", "projector": "full", "language": "lora"}
CROSS_MODAL = {"language.layers": "cross_modal_adapter"}
WEIGHTS = KindWeights(special=0.125, instruction=0.5, response=1.0)
TASK_WEIGHTS = {"vqa": 2.0, "chat": 0.25}
TASKS = ("vqa", "chat", "other")
# Their norms add up the gradient of their weight in float32, over all tokens of a row, and Gemma 3n's round
# that of each token (with norms in float64 it agrees to 1e-14);
# GLM-4.5V has routers that compute in float32.
IN_FLOAT32 = ("aya_vision", "cohere2_vision", "gemma3n", "glm4v_moe")
ORDERS = {"two": [0, 1], "five": [3, 0, 2, 1, 4]}


def tolerance_of(family, attention="auto"):
    """Eager attention computes its softmax in float32."""
    return 1e-6 if family in IN_FLOAT32 or attention == "eager" else 2e-10


@pytest.fixture
def prepared(module):
    """A module whose LoRA has an effect, in eval mode but for what gradient checkpointing needs."""

    def make(family, adapt, dtype=torch.float64, attention="auto", checkpointing=False):
        one = module(
            family,
            adapt=adapt,
            token_weights=WEIGHTS,
            attn_implementation=attention,
            gradient_checkpointing=checkpointing,
        )
        with torch.no_grad():
            for name, weight in one.named_parameters():
                if "lora_B" in name or not weight.any():
                    weight.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        one.to(dtype)
        if family in MIXTURES and dtype == torch.float64:
            one.model.set_experts_implementation("eager")  # the kernel of products by group knows no float64
        set_modes(one.model)
        one.tasks = make_task_weights(TASK_WEIGHTS, TASKS)
        return one

    return make


@pytest.mark.parametrize(
    ("plan", "attention", "checkpointing"),
    [(FULL, "auto", False), (LORA, "masks", False), (LORA, "auto", True)],
    ids=["full", "lora with masks", "lora with checkpointing"],
)
@pytest.mark.parametrize("family", PACKED)
def test_loss_and_every_gradient_are_those_of_each_alone(prepared, family, plan, attention, checkpointing):
    attention = with_masks(family) if attention == "masks" else attention
    one = prepared(family, plan, attention=attention, checkpointing=checkpointing)
    assert takes_lengths(one.model) == (attention == "auto")
    assert one.model.is_gradient_checkpointing == checkpointing
    of_each = [alone(one, [sample]) for sample in SAMPLES]
    for order in ORDERS.values():
        found = step(one, batch_of(one, [SAMPLES[at] for at in order], pack=True))
        assert distance(found, summed([of_each[at] for at in order])) < tolerance_of(family, attention)


@pytest.mark.parametrize("family", PACKED)
def test_in_float32_they_differ_by_rounding(prepared, family):
    one = prepared(family, FULL, dtype=torch.float32, attention=with_masks(family))
    batch = batch_of(one, SAMPLES, pack=True, dtype=torch.float32)
    assert distance(step(one, batch), alone(one, SAMPLES, dtype=torch.float32)) < 1e-4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_with_adapters_that_see_pictures_once_more(prepared, family):
    one = prepared(family, CROSS_MODAL)
    assert distance(step(one, batch_of(one, SAMPLES, pack=True)), alone(one, SAMPLES)) < 1e-10


@pytest.mark.parametrize("family", PACKED)
def test_as_the_familys_own_forward_finds_the_loss_of_each(prepared, family):
    """Our weights come into it by hand: from kinds, samples, turns and tasks."""
    one = prepared(family, FULL)
    found = step(one, batch_of(one, SAMPLES, pack=True))
    one.zero_grad()
    total = 0
    for sample in SAMPLES:
        batch = batch_of(one, [sample], pack=False)
        inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
        logits = one.model(**inputs, use_cache=False).logits[0, :-1]
        weights = torch.tensor([0, 0.125, 0, 0.5, 1, 2, 1.5], dtype=torch.float64)[batch.kinds[0].long()]
        weights = weights * batch.factors[0] * TASK_WEIGHTS.get(sample.task, 1)
        losses = F.cross_entropy(logits, inputs["input_ids"][0, 1:], reduction="none")
        total = total + (weights[1:] * losses).sum()
    (total / 1024).backward()
    assert distance(found, (total.detach() / 1024, gradients_of(one))) < 1e-6


# --- no sample sees its neighbours --------------------------------------------------------------------------
SAME_SHAPES = {
    0: talk("What is this?", "It is grey.", picture(64, 64, 10), task="vqa"),
    2: talk(
        "Which is wide?",
        "The second of them.",
        picture(32, 32, 11),
        picture(96, 48, 2),
        then=[("Sure?", "Not at all.", 0.0), ("And now?", "Yes, U am.", 3.0)],
        weight=2.0,
    ),
    3: talk("Who!", "U.", task="chat"),
}
OTHER_SHAPES = {
    0: talk("What is this? Tell me more than you said.", "A red one.", picture(96, 32, 5), task="vqa"),
    1: talk("Hello", "Bye.", picture(64, 64, 12), task="chat", weight=0.5),
    4: talk("Describe it, please.", "There is nothing to be seen.", task="vqa"),
}
"""Samples that are changed, by place: their words, their pictures, how many of both, how large."""


@pytest.mark.parametrize(
    ("family", "attention"),
    [*((family, "auto") for family in PACKED), ("llava", "sdpa"), ("qwen2_5_vl", "sdpa")],
)
def test_another_sample_changes_no_bit_of_its_neighbours(prepared, family, attention):
    """With other words and pictures of the same sizes all kernels do the same work."""
    one = prepared(family, FULL, dtype=torch.float32, attention=attention)
    for place, other in SAME_SHAPES.items():
        found = []
        for sample in (SAMPLES[place], other):
            samples = [*SAMPLES[:place], sample, *SAMPLES[place + 1 :]]
            batch = batch_of(one, samples, pack=True, dtype=torch.float32)
            theirs = batch.samples.flatten()[batch.targets.positions] != place
            all_losses = one.loss_sums(batch).token_losses
            positions, labels, weights = (values[theirs] for values in batch.targets[:3])
            batch = batch._replace(targets=Targets(positions, labels, weights))
            found.append((batch, all_losses[theirs], all_losses[~theirs], step(one, batch)))
        (before, losses, own, (_, gradients)), (after, new_losses, new_own, (_, new_gradients)) = found
        assert torch.equal(before.sequences.cu_seq_lens, after.sequences.cu_seq_lens)
        assert not torch.equal(own, new_own)
        assert torch.equal(losses, new_losses)
        assert gradients.keys() == new_gradients.keys()
        for name, gradient in gradients.items():
            if ".experts." in name:  # where a token's row is among those of its expert depends on the others
                torch.testing.assert_close(new_gradients[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
            else:
                assert torch.equal(gradient, new_gradients[name]), name


@pytest.mark.parametrize("family", PACKED)
def test_a_sample_of_another_size_changes_nothing_but_rounding(prepared, family):
    """Where the row has another length, its sums may be split in other places."""
    one = prepared(family, FULL)
    for place, other in OTHER_SHAPES.items():
        found = []
        for sample in (SAMPLES[place], other):
            samples = [*SAMPLES[:place], sample, *SAMPLES[place + 1 :]]
            batch = batch_of(one, samples, pack=True)
            theirs = batch.samples.flatten()[batch.targets.positions] != place
            positions, labels, weights = (values[theirs] for values in batch.targets[:3])
            batch = batch._replace(targets=Targets(positions, labels, weights))
            found.append((one.loss_sums(batch).token_losses, step(one, batch)))
        (losses, before), (new_losses, after) = found
        torch.testing.assert_close(new_losses, losses, rtol=1e-12, atol=1e-12)
        assert distance(after, before) < tolerance_of(family)


# --- the proof finds what is wrong --------------------------------------------------------------------------
def without_axis_of_masks(batch):
    """Positions along three axes, as code that doesn't know of packing gives them."""
    return with_inputs(batch, position_ids=batch.inputs["position_ids"][1:])


def without_restarts(batch):
    """Positions that count on through the row: no mask is made."""
    places = torch.arange(batch.inputs["input_ids"].shape[1])
    return with_inputs(batch, position_ids=places[None])


def one_off(batch):
    """Lengths by which the last token of each sample is the first of the next."""
    ends = batch.sequences.cu_seq_lens.clone()
    ends[1:-1] -= 1
    return batch._replace(sequences=Sequences(ends, batch.sequences.max_length + 1))


def as_one(batch):
    """One sequence, as if the lengths were lost."""
    length = batch.inputs["input_ids"].shape[1]
    return batch._replace(sequences=Sequences(torch.tensor([0, length], dtype=torch.int32), length))


def with_swapped_pictures(batch):
    return with_inputs(batch, pixel_values=batch.inputs["pixel_values"].flip(0))


def with_inputs(batch, **inputs):
    return batch._replace(inputs={**batch.inputs, **inputs})


@pytest.mark.parametrize(
    ("family", "attention", "broken"),
    [
        ("qwen2_vl", "sdpa", without_axis_of_masks),
        ("qwen3_vl", "sdpa", without_axis_of_masks),
        ("llava", "sdpa", without_restarts),
        ("internvl", "sdpa", without_restarts),
        ("llava", "auto", without_restarts),
        ("llava", "auto", one_off),
        ("qwen2_5_vl", "auto", one_off),
        ("smolvlm", "auto", as_one),
        ("qwen2_5_vl", "auto", as_one),
        ("llava", "sdpa", with_swapped_pictures),
    ],
)
def test_what_breaks_packing_is_found(prepared, family, attention, broken):
    one = prepared(family, LORA, attention=attention)
    batch, expected = batch_of(one, SAMPLES, pack=True), alone(one, SAMPLES)
    assert distance(step(one, batch), expected) < 1e-10
    # The least is what rotary embeddings lose in float32 where positions count on but no sample sees another.
    assert distance(step(one, broken(batch)), expected) > 5e-7
