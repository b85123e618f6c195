"""Gemma 3n's padding may have an embedding of zeros: gradients are those of each sample without padding."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText

from lightning_vlm.models.loading.load import load_model, load_processor, make_ready, model_without_weights
from tests.support import tiny

TEXTS = ["Which of the two is wide?", "Who?"]


@pytest.fixture
def with_zeros(tmp_path):
    """A folder with a model whose padding has embeddings of zeros, as transformers starts them."""

    def make(family):
        tiny.build(family, tmp_path)
        model = AutoModelForImageTextToText.from_pretrained(tmp_path)
        with torch.no_grad():
            for embedding in (model.get_input_embeddings(), model.get_decoder().embed_tokens_per_layer):
                embedding.weight[embedding.padding_idx] = 0
        model.save_pretrained(tmp_path)
        return tmp_path

    return make


def step(model, inputs):
    """The logits of all tokens, and the gradients of their losses."""
    model.zero_grad()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = model(**inputs).logits
    targets = ids[:, 1:].masked_fill(mask[:, 1:] * mask[:, :-1] == 0, -100)  # of tokens behind a token
    F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum").backward()
    named = model.named_parameters()
    return logits[mask.bool()], {name: one.grad for name, one in named if one.grad is not None}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gemma3n"])
def test_gradients_are_those_of_each_sample_without_padding(with_zeros, family, side):
    folder = with_zeros(family)
    tokenizer = load_processor(folder).tokenizer
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    alone = [step(plain, tokenizer(text, return_tensors="pt")) for text in TEXTS]
    batch = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    if side == "left":  # behind words, padding sees them and is not zero for long
        assert any(one.isnan().any() for one in step(plain, batch)[1].values())

    model = load_model(folder).model
    logits, gradients = step(model, batch)
    torch.testing.assert_close(logits, torch.cat([each for each, _ in alone]), rtol=1e-4, atol=1e-5)
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        expected = sum(each[name] for _, each in alone)
        atol = 1e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=atol, msg=name)
    pad = model.get_input_embeddings().padding_idx
    assert not model.get_input_embeddings().weight[pad].any()


def test_a_model_without_weights(tmp_path):
    """As plans have it: there are no values to look at."""
    tiny.build("gemma3n", tmp_path)
    model = model_without_weights(str(tmp_path))
    make_ready(model, None)
    assert model.get_input_embeddings().weight.is_meta
