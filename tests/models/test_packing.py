"""What is known not to be exact when packed, from classes and configurations alone."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Florence2Config,
    Glm4vConfig,
    Lfm2VlConfig,
    Llama4Config,
    PretrainedConfig,
    Qwen3_5Config,
    T5Gemma2Config,
)

from lightning_vlm.models.packing import why_not_packed
from tests.support.packed import NEVER
from tests.support.tiny import FAMILIES

BOTH_WAYS = "tokens of a picture or a question see those behind them"
WHY = {
    "molmo2": BOTH_WAYS,
    "lfm2_vl": "it has layers of conv",
    "lfm3_vl": "it has layers of conv",
    "gemma3": BOTH_WAYS,
    "gemma4": BOTH_WAYS,
    "gemma4_31b": BOTH_WAYS,
    "paligemma": BOTH_WAYS,
    "mllama": "its tokens see pictures by cross-attention",
    "qwen3_5": "it has layers of linear_attention",
    "kosmos-2": "its masks aren't made from positions",
    "blip-2": "its masks aren't made from positions",
    "instructblip": "it takes no position_ids",
    "hunyuan_vl": "it has no axis of positions that masks are made from",
    "llama4": "it has layers of chunked_attention",
    "qwen3_5_moe": "it has layers of linear_attention",
    "minicpmv4_6": "it has layers of linear_attention",
}


def test_the_list_of_families_is_right():
    assert set(WHY) == set(NEVER)


def without_weights(config: PretrainedConfig):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_each_family(model_folder, family):
    model = AutoModelForImageTextToText.from_pretrained(model_folder(family))
    why = why_not_packed(model)
    if family in WHY:
        assert why == f"{type(model).__name__}: {WHY[family]}"
    else:
        assert why is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Qwen3_5Config, "it has layers of linear_attention"),
        (Llama4Config, "it has layers of chunked_attention"),
        (T5Gemma2Config, "it is an encoder and a decoder"),
        (Florence2Config, "it is an encoder and a decoder"),
        (Blip2Config, "its masks aren't made from positions"),
        (Glm4vConfig, None),
    ],
)
def test_of_families_without_weights(config, reason):
    why = why_not_packed(without_weights(config()))
    assert why is None if reason is None else why.endswith(f": {reason}")


def test_of_layers_that_mix_tokens():
    config = Lfm2VlConfig(text_config={"model_type": "lfm2", "full_attn_idxs": [1], "num_hidden_layers": 2})
    assert "layers of conv" in why_not_packed(without_weights(config))


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_with_masks_is_exact(model_folder, attention):
    model = AutoModelForImageTextToText.from_pretrained(model_folder("llava"), attn_implementation=attention)
    assert why_not_packed(model) is None


def test_attention_without_masks_is_not(model_folder):
    model = AutoModelForImageTextToText.from_pretrained(model_folder("llava"))
    model.get_decoder().config._attn_implementation_internal = "paged|sdpa"
    assert "no masks for its attention, paged|sdpa" in why_not_packed(model)


def test_positions_without_the_axis_of_a_mask(model_folder):
    """As of a model that knows three axes only."""
    model = AutoModelForImageTextToText.from_pretrained(model_folder("qwen2_vl"))
    assert why_not_packed(model) is None

    class ThreeAxes(type(model.get_decoder())):
        def forward(self, position_ids=None):
            return create_causal_mask(position_ids)  # noqa: F821

    model.get_decoder().__class__ = ThreeAxes
    assert "no axis of positions" in why_not_packed(model)
