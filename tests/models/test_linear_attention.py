"""Layers whose state runs along the row (Gated DeltaNet, short convolutions): padding changes nothing."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

PADDING = (1, 3, 70)
"""Tokens of padding: fewer than the convolution sees, and more than a chunk of the recurrence."""


@pytest.fixture
def sample(processor_of):
    """A chat with a picture."""

    def make(family):
        processor = processor_of(family)
        words = [{"type": "image"}, {"type": "text", "text": "What is this? " * 9}]
        chat = [{"role": "user", "content": words}, {"role": "assistant", "content": words[1:]}]
        image = Image.linear_gradient("L").resize((60, 60)).convert("RGB")
        text = processor.apply_chat_template(chat)
        return processor, dict(processor(images=[[image]], text=[text], return_tensors="pt"))

    return make


def padded(inputs, processor, left, right):
    """The same with padding, and its mask."""
    padding = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    widened = dict(inputs)
    for name, value in padding.items():
        if name not in inputs:
            continue
        widened[name] = torch.nn.functional.pad(inputs[name], (left, right), value=value)
    return widened


def step(model, inputs, stretch, chosen):
    """The logits of some tokens, and the gradients that their loss gives."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits[:, stretch]
    torch.nn.functional.cross_entropy(logits[0, :-1], chosen[0, 1:]).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    return logits.detach(), gradients


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", "lfm3_vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(family, side, sample, tiny_folder):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder(family))
    processor, inputs = sample(family)
    ids = inputs["input_ids"]
    logits, gradients = step(model, inputs, slice(None), ids)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for count in PADDING:
        left, right = (count, 0) if side == "left" else (0, count)
        with_padding = padded(inputs, processor, left, right)
        stretch = slice(left, left + ids.shape[1])
        found, found_gradients = step(model, with_padding, stretch, ids)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)
        for name, gradient in gradients.items():
            far = (found_gradients[name] - gradient).abs().max()
            assert far <= 1e-5 * largest, name
        if side == "left":  # what is padding comes from the mask, and without one it would be seen
            del with_padding["attention_mask"]
            seen, _ = step(model, with_padding, stretch, ids)
            assert not torch.allclose(seen, logits, rtol=0, atol=1e-4)
