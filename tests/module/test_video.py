"""Videos beside pictures and text in one batch: losses, gradients, positions and answers are those that each
sample gets alone from the family's own processor and model.

In float64 they agree to rounding, which a frame of padding or a wrong time would not.
"""

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning_vlm_callbacks.modes import set_modes

from lightning_vlm.data.batch.collate import Batch, exact_again
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.batch_loss import find_targets
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.metrics.answers import generate_answers
from lightning_vlm.models.picture_inputs import PictureInputsFinder
from lightning_vlm.models.positions import token_positions
from tests.support.clips import EVERY_FRAME, MIXED, ONE_MEDIUM, PICTURE, VIDEO, clip, talk
from tests.support.packed import NEVER, OfList, distance, gradients_of
from tests.support.rendering import own_inputs

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
FULL = {"vision": "full", "projector": "full", "language": "full", "head": "full"}
SAMPLES = [
    talk((PICTURE, "What is this?"), "Noise."),
    talk((clip(), "What moves?"), "Nothing at all."),
    talk("Hello", "Hello, and a few words."),
    talk(
        (clip(3, 40, 80, seed=1, fps=0.5), "And", clip(3, 40, 80, seed=2, fps=0.5), "?"), "No.", "So?", "No!"
    ),
    talk((clip(2, seed=3, fps=12.0), "Fast?"), "Yes."),
]


NO_SDPA = ("gemma4", "gemma4_31b")
"""Families of which transformers says that a part has none."""
IN_FLOAT32 = {"qwen3_5": 1e-4, "qwen3_5_moe": 1e-4}
"""Families whose layers compute in float32 whatever they get, and how close they come."""


def samples_of(family):
    return SAMPLES if family in ONE_MEDIUM else [*SAMPLES, MIXED]


@pytest.fixture
def trained(module):
    """A module in float64 that trains everything, in eval mode."""

    def make(family, takes_lengths=False):
        attention = "auto" if takes_lengths or family in NO_SDPA else "sdpa"
        one = module(
            family, adapt=FULL, token_weights=KindWeights(box=1.0, entity=1.0), attn_implementation=attention
        )
        one.double()
        if "experts" in "".join(name for name, _ in one.named_parameters()):
            one.model.set_experts_implementation("eager")  # the kernel of products by group knows no float64
        set_modes(one.model)
        return one

    return make


def batch_of(one, samples, pack=False, prompts=False) -> Batch:
    renderer = Renderer(one.processor, video=EVERY_FRAME)
    data = RenderedBatches(
        OfList(samples),
        renderer,
        learn=not prompts,
        prompts=prompts,
        pack=pack,
        positions=token_positions(one.model),
        pictures=PictureInputsFinder(one.model),
    )
    batch = data[list(range(len(samples)))]
    assert not batch.skipped, batch.skipped
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in batch.inputs.items()
    }
    return batch._replace(inputs=inputs)


def own_loss_and_gradients(one, samples):
    """The sum of the losses of each sample alone, by the family's own processor and forward with labels."""
    renderer = Renderer(one.processor, video=EVERY_FRAME)
    one.zero_grad()
    total = 0
    for sample in samples:
        inputs = own_inputs(renderer, sample)
        example = renderer.example(sample)
        learned = example.kinds >= Kind.RESPONSE
        if example.turn_weights is not None:  # answers that a template writes otherwise once others follow
            learned &= example.turn_weights > 0
        labels = torch.where(learned[None], inputs["input_ids"], -100)
        inputs = {
            name: value.double() if value.is_floating_point() and name.startswith("pixel") else value
            for name, value in inputs.items()
        }
        loss = one.model(**inputs, labels=labels, use_cache=False).loss * (labels != -100).sum()
        loss.backward()
        total = total + loss.detach()
    return total, gradients_of(one)


PACKINGS = [(family, pack) for family in VIDEO for pack in (False, True) if not (pack and family in NEVER)]


@pytest.mark.parametrize(("family", "pack"), PACKINGS)
def test_losses_and_gradients_are_the_familys_own_of_each_alone(trained, family, pack):
    one = trained(family, pack)
    close = IN_FLOAT32.get(family, 1e-6)  # transformers' loss itself is float32
    samples = samples_of(family)
    expected = own_loss_and_gradients(one, samples)
    batch = batch_of(one, samples, pack)
    assert batch.is_packed == pack
    one.zero_grad()
    sums = one.loss_sums(batch._replace(targets=find_targets(batch, one.token_weights)))
    sums.loss_sum.backward()
    assert distance((sums.loss_sum.detach(), gradients_of(one)), expected) < close
    # Without what workers find the model does the same, if it waits for the device.
    one.zero_grad()
    alone = one.loss_sums(batch._replace(picture_inputs=None))
    alone.loss_sum.backward()
    assert distance((alone.loss_sum.detach(), gradients_of(one)), expected) < close


@pytest.mark.parametrize("family", VIDEO)
def test_positions_are_the_models_own(trained, family):
    one = trained(family)
    if token_positions(one.model) is None:
        pytest.skip("it counts positions along one axis")
    renderer = Renderer(one.processor, video=EVERY_FRAME)
    for sample in samples_of(family)[1:]:
        inputs = own_inputs(renderer, sample)
        if "video_grid_thw" not in inputs:
            continue
        one.model.model.rope_deltas = None
        names = (
            "image_grid_thw",
            "video_grid_thw",
            "attention_mask",
            "mm_token_type_ids",
            "second_per_grid_ts",
        )
        given = {name: inputs[name] for name in names if name in inputs}
        expected, _ = one.model.model.get_rope_index(inputs["input_ids"], **given)
        found = batch_of(one, [sample]).inputs["position_ids"]
        assert torch.equal(found, expected)
        assert found[0].unique().numel() > 1


@pytest.mark.parametrize("family", VIDEO)
def test_answers_in_a_batch_are_those_of_each_alone(trained, family):
    one = trained(family)
    options = {"max_new_tokens": 6}
    samples = samples_of(family)

    def answers(some):
        batch = batch_of(one, some, prompts=True)
        prompts = {
            name: value.double() if value.is_floating_point() else value
            for name, value in batch.prompts.items()
        }
        return generate_answers(one.model, one.processor, batch._replace(prompts=prompts), options)

    together = answers(samples)
    for sample, answer in zip(samples, together, strict=True):
        assert [answer] == answers([sample])
    assert together[1].prompt == "<video> What moves?"
    assert together[1].videos == (None,)
    assert together[0].videos == ()
    inputs = own_inputs(Renderer(one.processor, video=EVERY_FRAME), samples[1], last=False)
    inputs = {
        name: value.double() if value.is_floating_point() and name.startswith("pixel") else value
        for name, value in inputs.items()
    }
    ids = one.model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    text = one.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    assert together[1].text == text.strip()


def test_times_stay_exact_where_lightning_rounds_a_batch(trained):
    """`bf16-true` makes all floating-point tensors of a batch bfloat16; positions are made of some."""
    one = trained("qwen2_5_vl")
    batch = batch_of(one, [talk((clip(8, fps=3.0), "What?"), "It.")], prompts=True)
    moved = HalfPrecision("bf16-true").convert_input(batch)
    seconds = own_inputs(Renderer(one.processor, video=EVERY_FRAME), talk((clip(8, fps=3.0), "?"), "It."))
    assert exact_again(moved.prompts)["second_per_grid_ts"].tolist() == seconds["second_per_grid_ts"].tolist()
    assert moved.prompts["pixel_values_videos"].dtype == torch.bfloat16
