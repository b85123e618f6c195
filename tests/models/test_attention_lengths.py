"""Language models that attend by lengths give what `sdpa` gives with masks, or for each sample alone."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_vlm.models.attention.families import use_varlen_attention
from lightning_vlm.models.attention.lengths import takes_lengths, varlen_lengths
from lightning_vlm.models.loading.load import load_model
from tests.support import tiny

REFUSED = {
    "paligemma": "it caps its scores (attn_logit_softcapping)",
    "gemma3": "pictures are seen in both directions, or a question is",
    "mllama": "it sees pictures through cross-attention",
}
"""Families whose language models don't qualify, and why."""
TAKES_LENGTHS = [family for family in tiny.FAMILIES if family not in REFUSED]


def load(folder, attn_implementation="auto"):
    return load_model(folder, attn_implementation=attn_implementation).model.train()


def text(model, size, seed=0):
    torch.manual_seed(seed)
    return torch.randint(5, 300, (1, size))


def packed(rows):
    """Samples of text as one row, its positions, and its lengths."""
    sizes = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    ends = torch.tensor([0, *sizes]).cumsum(0).int()
    return torch.cat(rows, 1), positions, ends, max(sizes)


def run(model, ids, **given):
    return model.base_model(input_ids=ids, use_cache=False, return_dict=True, **given).last_hidden_state


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_which_language_models_qualify(family, tiny_folder):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder(family))
    use = use_varlen_attention(model)
    assert use.language == takes_lengths(model) == (family not in REFUSED)
    if family in REFUSED:
        assert f"language model: {REFUSED[family]}" in use.why_not


@pytest.mark.parametrize("family", TAKES_LENGTHS)
def test_packed_samples_of_text_are_as_alone(family, tiny_folder):
    model = load(tiny_folder(family))
    plain = load(tiny_folder(family), "sdpa")
    rows = [text(model, size, size) for size in (7, 1, 12)]
    ids, positions, ends, longest = packed(rows)
    with torch.no_grad():
        expected = torch.cat([run(plain, row) for row in rows], 1)
        with varlen_lengths(model, ends, longest):
            found = run(model, ids, position_ids=positions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
