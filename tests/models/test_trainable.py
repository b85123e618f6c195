"""Models that can't be trained are refused before anything is loaded, in one sentence."""

import re

import pytest
from transformers import (
    AutoConfig,
    BertConfig,
    Blip2Config,
    OPTConfig,
    T5Config,
    VisionEncoderDecoderConfig,
    ViTConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.loading.trainable import why_not_trainable

TWO_PARTS = ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder")
OTHERS = (
    *("blip", "evolla", "fuyu", "git", "instructblipvideo", "kosmos-2.5", "mistral4"),
    *("minicpm_ocr", "minicpmv4_7"),
)
INSTEAD = "; choose a model with one decoder, such as paligemma, smolvlm or qwen3_vl"


@pytest.mark.parametrize("kind", [*TWO_PARTS, *OTHERS])
@pytest.mark.parametrize("load", [load_model, load_processor])
def test_a_model_that_cant_be_trained_is_refused(kind, load, tmp_path):
    assert kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    two = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), BertConfig())
    config = two if kind == two.model_type else AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path)
    because = "it reads questions with an encoder" if kind in TWO_PARTS else ""
    begin = f"model {str(tmp_path)!r}: {kind} can't be trained: {because}"
    with pytest.raises(UserError, match=f"^{re.escape(begin)}.+{INSTEAD}$"):
        load(tmp_path)


def test_blip2_is_refused_with_t5_and_not_with_opt(tmp_path):
    def around(text):
        return Blip2Config(text_config=text.to_dict())

    assert why_not_trainable(around(OPTConfig())) is None
    around(T5Config()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="blip-2 can't be trained: it reads questions with an encoder"):
        load_processor(tmp_path)
