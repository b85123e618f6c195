"""Operations counted from sizes are those that PyTorch counts as it computes them, forward and backward."""

import pytest
import torch
from lightning_vlm_callbacks.selectors import select_parameters
from torch.utils.flop_counter import FlopCounterMode

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.batch.picture_sizes import PictureSizes
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.models.operations import OperationCounter
from lightning_vlm.models.operations.counter import causal_pairs
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.positions import token_positions
from tests.support import tiny
from tests.support.clips import EVERY_FRAME, MIXED, ONE_MEDIUM, VIDEO, clip, talk
from tests.support.packed import OfList
from tests.support.pictures import ONE_PICTURE
from tests.support.tiny.moe import MIXTURES

UNKNOWN = {
    "mllama",
    "gemma4",
    "gemma4_31b",
    "gemma3n",
    "idefics2",
    "granite4_vision",
    "got_ocr2",
    "qwen3_5",
    "minicpmv4_6",
    "lfm2_vl",
    "lfm3_vl",
    "ovis2",
    "molmo2",
    "fast_vlm",
    *ONE_PICTURE,
    *MIXTURES,
}
"""They see pictures by cross-attention, by queries or in windows of SAM's tower,
attend linearly, mix tokens by convolutions, have stages of convolutions, choose
features from a table, add features in several layers, fill up patches, say no sizes of pictures,
or have experts."""
PLANS = {
    "full": dict.fromkeys(("vision", "projector", "language"), "full"),
    "projector": {"projector": "full"},
    "LoRA": {"vision": {"lora": {"r": 4}}, "projector": "full", "language": {"lora": {"r": 4}}},
}
TRAINED = {
    "full": [["*"], ["projector"], ["projector", "language"], ["vision"], ["language.layers[-1:]"]],
    "LoRA": [["*.lora_*", "projector"], ["language.*.lora_*", "projector"], ["vision.*.lora_*"]],
}
"""Plan -> what of it trains."""
OTHERS = {
    "ia3": {"language": "ia3"},
    "adapter": {"language": {"adapter": {"reduction": 4}}},
    "head": {"head": "full"},
}


@pytest.fixture(scope="module")
def module_of(tiny_folder):
    """A module of a tiny family. `eager` attention is made of products that PyTorch counts exactly."""

    def make(family, plan, attn_implementation="eager", **options):
        torch.manual_seed(0)
        template = None if tiny.FAMILIES[family].template else "plain"
        module = VLMModule(
            str(tiny_folder(family)),
            adapt=plan,
            chat_template=template,
            attn_implementation=attn_implementation,
            **options,
        )
        module.configure_model()
        for part in module.model.modules():
            if hasattr(part, "fused_attn"):  # timm's, which transformers doesn't tell
                part.fused_attn = attn_implementation != "eager"
        return module.eval()

    return make


def batches_of(module, size, indices, **options) -> list[Batch]:
    data = VLMDataModule(train=Drawn("val", size=size, tasks=["vqa"], rounds=1), processor=module.processor)
    rendered = RenderedBatches(data.source("train"), data.renderer, learn=True, prompts=False, **options)
    return [rendered[chosen] for chosen in indices]


def count(counter, batch, targets):
    return counter.count(batch.lengths, batch.pictures, targets, batch.inputs)


def counted_by_pytorch(module, batch):
    """Without the head."""
    with FlopCounterMode(display=False) as counter:
        hidden = module.hidden_states(batch)
        if hidden.requires_grad:
            hidden.sum().backward()
    return counter.get_total_flops()


def left_out(counter, batch):
    """What causality leaves out of attention, which PyTorch counts."""
    has_gradient = counter._tower is not None and counter._tower.cost.has_gradient
    language, _ = counter._text_costs(has_gradient)
    total = 0.0
    for window, operations in language.per_pair.items():
        for length in batch.lengths:
            total += operations * (length**2 - causal_pairs([length], window))
    return total


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_families_are_counted_to_the_last_operation(family, module_of):
    for plan, choices in TRAINED.items():
        module = module_of(family, PLANS[plan])
        (batch,) = batches_of(module, 3, [[0]])
        counter = OperationCounter(module.model)
        for chosen in choices:
            module.model.requires_grad_(False)
            for weight in select_parameters(module.model, chosen, find_parts(module.model)).values():
                weight.requires_grad_()
            found = count(counter, batch, 0)
            if family in UNKNOWN:
                assert found is None
                assert counter.why
            else:
                assert counter.why == ""
                assert found + left_out(counter, batch) == counted_by_pytorch(module, batch), chosen


@pytest.mark.parametrize("plan", OTHERS)
def test_other_methods(plan, module_of):
    module = module_of("llava", OTHERS[plan])
    (batch,) = batches_of(module, 3, [[0]])
    counter = OperationCounter(module.model)
    found = count(counter, batch, 0)
    expected = counted_by_pytorch(module, batch)
    if plan == "ia3":
        # It changes k and v. In the first layer q has no gradient, which is counted all the same.
        (length,) = batch.lengths
        expected += 2 * 64 * length**2
    assert found + left_out(counter, batch) == expected


FRAMES_APART = ("llava_onevision", "llava_next_video", "video_llava")
"""Families of which videos go another way through projector and pooling than pictures."""


MISCOUNTED = {"video_llama_3"}
"""Where videos beside pictures are counted up to 1% short."""


@pytest.mark.parametrize("family", sorted(set(VIDEO) - UNKNOWN - MISCOUNTED))
def test_videos_are_counted_as_well(family, module_of):
    module = module_of(family, PLANS["full"])
    samples = [talk((clip(3), "What moves?"), "Nothing."), *([] if family in ONE_MEDIUM else [MIXED])]
    renderer = Renderer(module.processor, video=EVERY_FRAME)
    positions = token_positions(module.model)
    rendered = RenderedBatches(OfList(samples), renderer, learn=True, prompts=False, positions=positions)
    for place in range(len(samples)):
        batch, counter = rendered[[place]], OperationCounter(module.model)
        found = count(counter, batch, 0)
        if family in FRAMES_APART:
            assert counter.why == "frames of videos go another way than pictures, which isn't counted"
        else:
            assert found + left_out(counter, batch) == counted_by_pytorch(module, batch)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES.keys() - UNKNOWN))
def test_a_batch_costs_what_its_samples_cost(family, module_of):
    """Padded, with tiles that fill up; and packed."""
    module = module_of(family, PLANS["full"])
    single = batches_of(module, 4, [[0], [1], [2], [3]])
    (padded,) = batches_of(module, 4, [[0, 1, 2, 3]])
    alone = [count(OperationCounter(module.model), one, 5) for one in single]
    counter = OperationCounter(module.model)
    assert count(counter, padded, 20) == pytest.approx(sum(alone), rel=1e-12)
    (packed,) = batches_of(module, 4, [[0, 1, 2, 3]], pack=True)
    assert count(counter, packed, 20) == pytest.approx(sum(alone), rel=1e-12)


@pytest.mark.parametrize("plan", [PLANS["projector"], {"head": "full"}])
def test_the_head_counts_at_targets(plan, module_of):
    module = module_of("pixtral", plan)
    (batch,) = batches_of(module, 3, [[0]])
    counter = OperationCounter(module.model)
    found = count(counter, batch, 7) - count(counter, batch, 0)
    head = module.model.get_output_embeddings()
    hidden = torch.zeros(7, head.in_features, requires_grad="projector" in plan)
    with FlopCounterMode(display=False) as pytorch:
        head(hidden).sum().backward()
    assert found == pytorch.get_total_flops()


def test_what_trains_may_change(module_of):
    """As in stages; and back."""
    module = module_of("llava", PLANS["full"])
    (batch,) = batches_of(module, 3, [[0]])
    counter = OperationCounter(module.model)
    whole = count(counter, batch, 0)
    tower = module.model.model.vision_tower
    for expected in (False, True):
        tower.requires_grad_(expected)
        found = count(counter, batch, 0)
        assert found + left_out(counter, batch) == counted_by_pytorch(module, batch)
        assert (found == whole) == expected


def test_text_alone_costs_no_gradients_below_the_projector(module_of):
    module = module_of("llava", PLANS["projector"])
    (batch,) = batches_of(module, 3, [[0]])
    text = batch.inputs["input_ids"][:, :9].clamp(max=20)
    counter = OperationCounter(module.model)
    found = counter.count([9], PictureSizes(), 0, {"input_ids": text})
    with FlopCounterMode(display=False) as pytorch:
        module.model.get_decoder()(input_ids=text)
    half = sum(cost * 9**2 / 2 for cost in counter._text_costs(False)[0].per_pair.values())
    assert found + half == pytorch.get_total_flops()


def test_quantised_weights_count_by_their_true_shape(module_of):
    plan = {"language": {"lora": {"r": 4}}}
    counts = []
    for options in ({}, {"quantization": "nf4"}):
        module = module_of("llava", plan, **options)
        (batch,) = batches_of(module, 3, [[0]])
        counts.append(count(OperationCounter(module.model), batch, 3))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_with_other_attention(attention, module_of):
    counts = []
    for implementation in ("eager", attention):
        module = module_of("qwen2_5_vl", PLANS["full"], implementation)
        (batch,) = batches_of(module, 3, [[0, 1]])
        counter = OperationCounter(module.model)
        counts.append(count(counter, batch, 3))
        assert counter.why == ""
    assert counts[0] == counts[1]


def test_weights_of_16_bits_with_adapters_of_32(module_of):
    """As `bf16-mixed` computes them."""
    module = module_of("qwen2_5_vl", PLANS["LoRA"])
    (batch,) = batches_of(module, 3, [[0]])
    expected = count(OperationCounter(module.model), batch, 3)
    for weight in module.model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.bfloat16()
    counter = OperationCounter(module.model, lambda: torch.autocast("cpu", torch.bfloat16))
    assert count(counter, batch, 3) == expected


def test_compiled_blocks_are_seen_and_stay_compiled(module_of):
    module = module_of("qwen2_5_vl", PLANS["full"])
    (batch,) = batches_of(module, 3, [[0]])
    expected = count(OperationCounter(module.model), batch, 3)
    for block in module.model.get_decoder().layers:
        block.compile(backend="eager")
    module.hidden_states(batch)
    frames = torch._dynamo.utils.counters["frames"]["total"]
    assert count(OperationCounter(module.model), batch, 3) == expected
    module.hidden_states(batch)
    assert torch._dynamo.utils.counters["frames"]["total"] == frames


def test_the_trial_leaves_no_trace(module_of):
    module = module_of("qwen2_5_vl", PLANS["LoRA"]).train()
    modes = [part.training for part in module.modules()]
    hooks = [len(part._forward_hooks) for part in module.modules()]
    (batch,) = batches_of(module, 3, [[0]])
    state = torch.get_rng_state()
    assert count(OperationCounter(module.model), batch, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert [len(part._forward_hooks) for part in module.modules()] == hooks
    assert all(weight.grad is None for weight in module.parameters())


def test_something_that_is_not_known_makes_it_unknown(module_of):
    """Products that no module has, as in a mixture of experts."""
    module = module_of("llava", PLANS["full"])
    layer = module.model.get_decoder().layers[0].mlp
    experts, forward = torch.nn.Parameter(torch.randn(4, 64, 64)), layer.forward
    layer.forward = lambda x: forward(x) + torch.einsum("bld,edh->blh", x, experts)
    (batch,) = batches_of(module, 3, [[0]])
    counter = OperationCounter(module.model)
    assert count(counter, batch, 0) is None
    assert "the language model has something that isn't known" in counter.why


def test_pairs_of_a_sliding_window():
    """Against a mask, as the limit of long sequences."""
    length, window = 4000, 500
    places = torch.arange(length)
    ahead = places[:, None] - places
    seen = ((ahead >= 0) & (ahead < window)).sum().item()
    assert causal_pairs([length], window) == pytest.approx(seen, rel=2e-3)


def test_an_empty_batch_costs_nothing(module_of):
    module = module_of("llava", PLANS["full"])
    (batch,) = batches_of(module, 3, [[]])
    assert count(OperationCounter(module.model), batch, 0) == 0
