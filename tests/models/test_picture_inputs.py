"""What workers find out about pictures changes nothing of what a model computes from them."""

import os
import pickle

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes
from transformers import AutoModelForImageTextToText

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.templates import chat_template
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import last_hidden_states
from lightning_vlm.models.attention import use_varlen_attention
from lightning_vlm.models.picture_inputs import SIZES, PictureInputs, PictureInputsFinder
from lightning_vlm.models.precision import give_pixels_their_dtype
from tests.support import tiny


@pytest.fixture(scope="module")
def model_and_batch(model_folder, processor_of):
    """A model of a family that trains, and a batch with pictures, about which nothing was found yet."""

    def make(family):
        processor = processor_of(family)
        if tiny.FAMILIES[family].template is None:
            processor.chat_template = chat_template("plain", processor)
        source = Drawn("train", size=2, tasks=["vqa"])
        data = VLMDataModule(train=source, batch_size=2, shuffle=False, processor=processor)
        model = AutoModelForImageTextToText.from_pretrained(model_folder(family))
        use_varlen_attention(model)
        give_pixels_their_dtype(model)
        set_modes(model)
        return model, next(iter(data.train_dataloader()))

    return make


def hidden_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    hidden = last_hidden_states(model, batch)
    hidden.square().sum().backward()
    return hidden.detach(), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_model_computes_the_same(model_and_batch, family):
    model, batch = model_and_batch(family)
    found = pickle.loads(pickle.dumps(PictureInputsFinder(model)))(batch.inputs)
    expected, gradients = hidden_and_gradients(model, batch)
    hidden, same = hidden_and_gradients(model, batch._replace(picture_inputs=found))
    assert set(found.sizes) == set(SIZES.get(model.config.model_type, [])) & set(batch.inputs)
    assert torch.equal(hidden, expected)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(same[name], gradient), name
    assert not {"get_placeholder_mask"} & set(vars(model.base_model)), "only for a forward"
    assert "TRANSFORMERS_DISABLE_TORCH_CHECK" not in os.environ


def test_towers_take_what_was_found(model_and_batch):
    """Other values in it change the features, so that those found are used."""
    model, batch = model_and_batch("qwen2_5_vl")
    found = PictureInputsFinder(model)(batch.inputs)
    tower = found.tower["image_grid_thw"]
    assert {"cu_seqlens", "position_ids", "window_index", "cu_window_seqlens"} <= set(tower)
    assert isinstance(tower["max_window_seqlen"], int)
    expected = last_hidden_states(model, batch)
    for name in ("position_ids", "window_index"):
        other = {"image_grid_thw": {**tower, name: tower[name].flip(0)}}
        changed = batch._replace(
            picture_inputs=PictureInputs(found.sizes, other, found.positions, found.tokens, found.counts)
        )
        assert not torch.equal(last_hidden_states(model, changed), expected), name


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_features_and_tokens_that_do_not_fit(model_and_batch, family):
    model, batch = model_and_batch(family)
    ids = batch.inputs["input_ids"].clone()
    ids[0, (ids[0] == model.config.image_token_id).nonzero()[0]] = 1
    fewer = batch._replace(inputs={**batch.inputs, "input_ids": ids})
    with pytest.raises(UserError, match=r"found \d+ features of pictures, expected \d+, one for each token"):
        last_hidden_states(model, fewer._replace(picture_inputs=PictureInputsFinder(model)(fewer.inputs)))
    with pytest.raises(ValueError, match="do not match"):  # as transformers finds on the device
        last_hidden_states(model, fewer)


def test_text_alone(model_and_batch):
    model, batch = model_and_batch("qwen2_5_vl")
    ids = {name: batch.inputs[name].clone() for name in ("input_ids", "attention_mask")}
    ids["input_ids"].fill_(5)
    found = PictureInputsFinder(model)(ids)
    assert not found.sizes
    assert not found.tower
    assert not len(found.positions)
    last_hidden_states(model, batch._replace(inputs=ids, picture_inputs=found))
