"""Which towers and language models attend by lengths, and why others don't: a change of any is seen here."""

from typing import NamedTuple

import pytest
from transformers import AutoModelForImageTextToText

from lightning_vlm.models.attention import NAME
from lightning_vlm.models.attention.families import VarlenUse, use_varlen_attention, why_not_language
from lightning_vlm.models.attention.lengths import takes_lengths
from tests.support import tiny

OWN_ROW = "it takes all pictures in one call"
LINEAR = "it has layers of linear_attention"
BOTH_WAYS = "tokens of a picture or a question see those behind them"


class Row(NamedTuple):
    """Why the tower and the language model of a family don't; empty where they do."""

    tower: str
    language: str


OWN_HEAD = "its language model has a head of its own"
FAMILIES = {
    "llava": Row(OWN_ROW, ""),
    "llava_next": Row(OWN_ROW, ""),
    "llava_onevision": Row(OWN_ROW, ""),
    "smolvlm": Row(OWN_ROW, ""),
    "idefics3": Row(OWN_ROW, ""),
    "qwen2_vl": Row("", ""),
    "qwen2_5_vl": Row("", ""),
    "qwen3_vl": Row("", ""),
    "paligemma": Row(OWN_ROW, BOTH_WAYS),
    "gemma3": Row(OWN_ROW, BOTH_WAYS),
    "internvl": Row(OWN_ROW, ""),
    "internvl3_5": Row(OWN_ROW, ""),
    "lfm2_vl": Row(OWN_ROW, "it has layers of conv"),
    "lfm3_vl": Row("", "it has layers of conv"),
    "ovis2": Row(OWN_ROW, ""),
    "lighton_ocr": Row("", ""),
    "got_ocr2": Row(OWN_ROW, ""),
    "minicpmv4_6": Row("", LINEAR),
    "deepseek_vl": Row(OWN_ROW, ""),
    "molmo2": Row(OWN_ROW, BOTH_WAYS),
    "deepseek_ocr2": Row(OWN_ROW, ""),
    "pixtral": Row("", ""),
    "mistral3": Row("", ""),
    "mllama": Row(OWN_ROW, "its tokens see pictures by cross-attention"),
    "qwen3_vl_moe": Row("", ""),
    "qwen3_5_moe": Row("", LINEAR),
    "ernie4_5_vl_moe": Row("", ""),
    "glm4v_moe": Row("", ""),
    "qwen3_5": Row("", LINEAR),
    "gemma4": Row(OWN_ROW, BOTH_WAYS),
    "gemma4_31b": Row(OWN_ROW, BOTH_WAYS),
    "idefics2": Row(OWN_ROW, ""),
    "granite4_vision": Row(OWN_ROW, ""),
    "granite_docling": Row(OWN_ROW, ""),
    "perception_lm": Row(OWN_ROW, ""),
    "fast_vlm": Row(OWN_ROW, ""),
    "gemma3n": Row(OWN_ROW, ""),
    "vipllava": Row(OWN_ROW, ""),
    "llava_next_video": Row(OWN_ROW, ""),
    "video_llava": Row(OWN_ROW, ""),
    "aya_vision": Row(OWN_ROW, ""),
    "cohere2_vision": Row(OWN_ROW, ""),
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr"), Row("", "")),
    "kosmos-2": Row(OWN_ROW, OWN_HEAD),
    "blip-2": Row(OWN_ROW, OWN_HEAD),
    "instructblip": Row(OWN_ROW, OWN_HEAD),
    **dict.fromkeys(("paddleocr_vl", "hunyuan_vl", "video_llama_3", "exaone4_5"), Row("", "")),
    "llama4": Row(OWN_ROW, OWN_HEAD),
}


def test_all_families_are_listed():
    assert list(FAMILIES) == list(tiny.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_which_towers_and_language_models_qualify(family, tiny_folder):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder(family))
    before = model.get_encoder(modality="image").config._attn_implementation
    row = FAMILIES[family]
    assert use_varlen_attention(model) == VarlenUse(row.tower, row.language)
    assert takes_lengths(model) == (not row.language)
    tower = model.get_encoder(modality="image").config._attn_implementation
    assert tower == (before if row.tower else NAME)


def test_a_language_model_that_caps_its_scores_does_not_qualify(tiny_folder):
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder("llava"))
    model.get_decoder().config.attn_logit_softcapping = 50.0
    assert why_not_language(model) == "it caps its scores (attn_logit_softcapping)"
