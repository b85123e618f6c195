"""Packed into one row, each sample gets what it would get alone, in the real models."""

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_vlm_callbacks.packed_rows import packed_lengths

from lightning_vlm.data.batch.collate import collate
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import find_targets
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.models.positions import token_positions
from tests.data.batch.test_collate import SAMPLES, items, samples_of
from tests.support.packed import PACKED

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


def packed(model, renderer, family, order):
    """Samples in an order, packed, and each alone."""
    chosen = items(renderer, [SAMPLES[at] for at in order if SAMPLES[at] in samples_of(family)])
    positions = token_positions(model)
    if positions is not None:
        chosen = [item._replace(positions=positions(item.example)) for item in chosen]
    return chosen, collate(chosen, renderer.tokenizer.pad_token_id, [], [], pack=True)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0), (1,), (2, 1, 0, 1, 2)])
@pytest.mark.parametrize("family", PACKED)
def test_packed_together_each_sample_gets_its_own_logits(tiny, family, order):
    model, renderer = tiny(family)
    if not [at for at in order if SAMPLES[at] in samples_of(family)]:
        pytest.skip("nothing that this family takes")
    chosen, batch = packed(model, renderer, family, order)
    with torch.no_grad():
        together = model(**batch.inputs, use_cache=False).logits[0]
        lengths = batch.sequences.cu_seq_lens.diff().tolist()
        for item, logits in zip(chosen, together.split(lengths), strict=True):
            example = item.example
            alone = model(input_ids=example.input_ids[None], **example.inputs, use_cache=False).logits[0]
            torch.testing.assert_close(logits, alone, atol=2e-5, rtol=1e-4)
    assert batch.tokens == batch.inputs["input_ids"].numel()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_found_by_workers_are_those_of_the_model(tiny, family):
    model, renderer = tiny(family)
    positions = token_positions(model)
    assert positions is not None
    chosen = [item._replace(positions=positions(item.example)) for item in items(renderer)]
    batch = collate(chosen, renderer.tokenizer.pad_token_id, [], [])
    own = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    with torch.no_grad():
        expected = model(**own, use_cache=False).logits
        found = model(**batch.inputs, use_cache=False).logits
    real = own["attention_mask"].bool()
    assert torch.equal(found[real], expected[real])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0)])
def test_the_same_targets_packed_as_padded(tiny, order):
    model, renderer = tiny("qwen2_5_vl")
    chosen, batch = packed(model, renderer, "qwen2_5_vl", order)
    padded = collate(chosen, renderer.tokenizer.pad_token_id, [], [])
    table = KindWeights()
    ours, theirs = find_targets(batch, table), find_targets(padded, table)
    assert torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.weights, theirs.weights)
    found = batch.samples.flatten()[ours.positions]
    assert torch.equal(found, padded.samples.flatten()[theirs.positions])


def test_what_is_seen_by_a_mask_of_rows_is_not_packed(tiny):
    _, renderer = tiny("mllama")
    with pytest.raises(UserError, match=r"set data.batching to tokens"):
        collate(items(renderer), 0, [], [], pack=True)


def test_lengths_of_samples_are_numbers_of_the_host(tiny):
    model, renderer = tiny("llava")
    chosen, batch = packed(model, renderer, "llava", (0, 1, 2))
    padded = collate(chosen, renderer.tokenizer.pad_token_id, [], [])
    assert batch.lengths == padded.lengths == tuple(len(item.example.input_ids) for item in chosen)
    assert batch.packed_lengths == packed_lengths(batch) == batch.lengths
    assert padded.packed_lengths is packed_lengths(padded) is None
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.lengths == batch.lengths
    _, alone = packed(model, renderer, "llava", (1,))
    assert alone.packed_lengths is None, "its row is a sample"


def test_prompts_stay_padded(tiny):
    _, renderer = tiny("llava")
    prompts = [item._replace(example=None) for item in items(renderer)]
    batch, padded = (collate(prompts, renderer.tokenizer.pad_token_id, [], [], pack=pack) for pack in (1, 0))
    assert batch.inputs == {}
    assert not batch.lengths
    assert batch.packed_lengths is None
    for name, value in padded.prompts.items():
        assert torch.equal(batch.prompts[name], value), name
