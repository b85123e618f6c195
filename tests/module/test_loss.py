"""Losses and gradients against the families' own `forward(labels=...)` and against `F.cross_entropy`."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning_vlm_callbacks.modes import set_modes
from transformers import (
    AutoModelForImageTextToText,
    LlavaNextConfig,
    PaliGemmaConfig,
)

from lightning_vlm import VLMModule
from lightning_vlm.data.batch.collate import Batch, Sequences
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.batch_loss import find_targets
from lightning_vlm.losses.weights import KindWeights
from tests.support import tiny

FAMILIES = tuple(tiny.FAMILIES)
ONES = KindWeights(box=1.0, entity=1.0)
PLANS = {
    "default": None,
    "lora on vision": {"vision.layers[0]": "lora", "language": "lora"},
    "full": {"language": "full", "projector": "full"},
    "head": {"head": "full"},
}


def gradients(module):
    found = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
    module.zero_grad()
    return found


def own_loss(module, batch):
    """The family's own forward: a mean over labels that aren't -100."""
    supervised = (batch.kinds >= Kind.RESPONSE) & (batch.factors > 0)
    labels = torch.where(supervised, batch.inputs["input_ids"], -100)
    return module.model(**batch.inputs, labels=labels, use_cache=False).loss


def assert_like_own(module, batch, rtol=2e-5):
    with torch.no_grad():  # B is zero at first, and A then has no gradient
        for name, one in module.named_parameters():
            if "lora_B" in name:
                one.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    set_modes(module.model)
    sums = module.loss_sums(batch)
    (sums.loss_sum / sums.weight_sum).backward()
    ours = gradients(module)
    theirs_loss = own_loss(module, batch)
    theirs_loss.backward()
    theirs = gradients(module)
    torch.testing.assert_close(sums.loss_sum / sums.weight_sum, theirs_loss, rtol=rtol, atol=0)
    assert ours.keys() == theirs.keys()
    assert any(one.abs().max() > 0 for one in ours.values())
    largest = max(one.abs().max() for one in theirs.values())
    for name, one in ours.items():
        # Not smaller than what rounding leaves of zeros, such as the gradients of the keys' biases.
        scale = theirs[name].abs().max().clamp(min=1e-3 * largest)
        torch.testing.assert_close(one / scale, theirs[name] / scale, rtol=0, atol=20 * rtol, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_familys_own(module, batch_of, family, plan, checkpointing):
    adapted = PLANS[plan]
    if plan == "lora on vision" and family == "fast_vlm":  # its first stages are convolutions alone
        adapted = {"vision.layers[-1:]": "lora", "language": "lora"}
    one = module(family, adapt=adapted, token_weights=ONES, gradient_checkpointing=checkpointing)
    assert one.model.is_gradient_checkpointing == checkpointing
    assert_like_own(one, batch_of(one))


def test_lora_on_an_untied_head(module, batch_of):
    one = module("llava", adapt={"head": "lora"}, token_weights=ONES)
    assert one.model.get_output_embeddings().weight is not one.model.get_input_embeddings().weight
    assert_like_own(one, batch_of(one))


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(module, batch_of, family):
    one = module(family, adapt=PLANS["full"], token_weights=ONES, dtype="bfloat16")
    batch, whole = batch_of(one), module(family, token_weights=ONES)
    sums, exact = one.loss_sums(batch), whole.loss_sums(batch)
    assert sums.loss_sum.dtype == torch.float32
    torch.testing.assert_close(sums.loss_sum, exact.loss_sum, rtol=1e-2, atol=0)
    torch.testing.assert_close(
        sums.loss_sum / sums.weight_sum, own_loss(one, batch).float(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_by_kind_and_sample(module, batch_of, listed, family):
    table = KindWeights(special=0.25, instruction=0.5, response=1.0, box=3.0, entity=1.5)
    one = module(family, token_weights=table)
    source = [item for item in Drawn("train", size=9) if item.messages[0].role == "user"][:5]
    weighted = [dataclasses.replace(item, weight=0.5 + at) for at, item in enumerate(source)]
    batch = batch_of(one, listed(weighted))
    assert {*range(7)} == set(batch.kinds.unique().tolist())
    by_kind = torch.tensor([0, 0.25, 0, 0.5, 1.0, 3.0, 1.5])
    weight_of = {item.source: item.weight for item in weighted}
    of_samples = torch.tensor([weight_of[source.partition("#")[0]] for source in batch.sources])
    weights = by_kind[batch.kinds.long()] * of_samples[:, None]
    weights *= batch.factors > 0  # answers that have a sample of their own
    with torch.no_grad():
        logits = one.model(**batch.inputs, use_cache=False).logits.double()
    ids = batch.inputs["input_ids"]
    ids = ids.where(ids < logits.shape[-1], -100)  # Mllama's head doesn't know the picture's token
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten().double()
    sums = one.loss_sums(batch)
    torch.testing.assert_close(sums.loss_sum.double(), (losses * weights).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(sums.weight_sum.double(), weights.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.token_losses.double(), losses[weights > 0], rtol=1e-4, atol=1e-5)


def test_nothing_supervised_is_a_zero_in_the_graph(module, batch_of, listed):
    one = module("llava", adapt={"projector": "full", "language": "lora"})
    batch = batch_of(one, listed(dataclasses.replace(item, weight=0.0) for item in Drawn(size=2)))
    sums = one.loss_sums(batch)
    assert (sums.loss_sum.item(), sums.weight_sum.item(), sums.token_losses.numel()) == (0, 0, 0)
    sums.loss_sum.backward()
    found = gradients(one)
    assert found.keys() == {name for name, p in one.named_parameters() if p.requires_grad}
    assert not any(grad.any() for grad in found.values())


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 40,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def from_config(config, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():  # logits large enough to be bounded
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    one = VLMModule(str(tmp_path), adapt={"language": "full"}, token_weights=ONES)
    one.configure_model()
    return one


def text_batch(**more):
    ids = torch.randint(1, 38, (2, 7), generator=torch.Generator().manual_seed(0))
    kinds = torch.full((2, 7), Kind.RESPONSE, dtype=torch.int8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}
    samples = torch.tensor([[0], [1]], dtype=torch.int32).expand(2, 7)
    sequences = Sequences(torch.tensor([0, 7, 14], dtype=torch.int32), 7)
    tasks = ["a", "b"]
    ones = torch.ones(2, 7).view(torch.int32)
    return Batch(inputs, kinds, samples, ones, tasks, tasks, {}, [], [], [], 14, sequences=sequences)


def own_mean(one, batch):
    with torch.no_grad():
        logits = one.model(**batch.inputs, use_cache=False).logits
    ids = batch.inputs["input_ids"]
    return logits, F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_family_that_caps_its_logits(tmp_path):
    text = {"model_type": "gemma2", "query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0, **TEXT}
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=39, projection_dim=32, hidden_size=32
    )
    one = from_config(config, tmp_path)
    batch = text_batch(token_type_ids=torch.zeros(2, 7, dtype=torch.int64))
    logits, expected = own_mean(one, batch)
    assert 1.5 < logits.abs().max() <= 2
    one.eval()
    sums = one.loss_sums(batch)
    torch.testing.assert_close(sums.loss_sum / sums.weight_sum, expected)


def test_a_family_that_ignores_what_its_text_model_would_scale(tmp_path):
    text = {"model_type": "granite", "logits_scaling": 8.0, **TEXT}
    vision = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    one = from_config(LlavaNextConfig(text_config=text, vision_config=vision, image_token_index=39), tmp_path)
    _, expected = own_mean(one, text_batch())
    sums = one.loss_sums(text_batch())
    torch.testing.assert_close(sums.loss_sum / sums.weight_sum, expected)


def test_weights_of_samples_are_not_rounded_with_the_batch():
    """Lightning's `bf16-true` rounds all floating-point tensors of a batch; 0.3 would become 0.3008."""
    batch = text_batch()
    batch = batch._replace(factor_bits=torch.full((2, 7), 0.3).view(torch.int32))
    rounded = HalfPrecision("bf16-true").convert_input(batch)
    targets = find_targets(rounded, ONES)
    assert set(targets.weights.tolist()) == {torch.tensor(0.3).item()}
