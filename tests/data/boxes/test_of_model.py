"""Each model gets the codec of its family, unless it was trained with another, or a person names one."""

import pytest
from transformers import AutoProcessor

from lightning_vlm.data.boxes.of_model import KEY, codec_for, model_type_of
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_processor
from lightning_vlm.published import families
from tests.support.tiny import FAMILIES

SHARED = ("vipllava", "fast_vlm", "pixtral", "glm_ocr")
"""Families whose processors are of the class of another family."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_loaded_with_its_model_is_of_its_family(model_folder, family):
    processor = load_processor(model_folder(family))
    known = families()[model_type_of(processor)]
    assert codec_for(processor).codec.name in (known.codec, "thousandths")
    alone = codec_for(AutoProcessor.from_pretrained(model_folder(family)))
    if family not in SHARED:
        assert alone.codec.name == codec_for(processor).codec.name


@pytest.mark.parametrize(
    ("family", "codec"),
    [("qwen2_5_vl", "qwen2_5_vl"), ("qwen3_5", "qwen3_vl"), ("gemma3", "gemma"), ("smolvlm", "thousandths")],
)
def test_a_processor_alone_is_known_by_its_class(processor_of, family, codec):
    assert codec_for(processor_of(family)).codec.name == codec


def test_the_shipped_model_keeps_the_codec_that_it_was_trained_with(processor_of, tmp_path):
    for processor in (load_processor("drawn-vlm"), processor_of("shipped")):
        assert codec_for(processor).codec.name == "thousandths"
        processor.save_pretrained(tmp_path)
        assert codec_for(AutoProcessor.from_pretrained(tmp_path)).codec.name == "thousandths"
        assert codec_for(processor, "decimals").codec.name == "decimals"


def test_what_lacks_tokens_is_refused_if_it_is_asked_for(processor_of):
    processor = processor_of("qwen2_vl")
    with pytest.raises(UserError, match=r"set model.new_tokens to \[<loc_0..999>\]"):
        codec_for(processor, "loc")
    with pytest.raises(UserError, match=r"data.boxes: found 'qwen'; expected one of"):
        codec_for(processor, "qwen")
    processor.tokenizer.init_kwargs[KEY] = "qwen3_vl"
    assert codec_for(processor).codec.name == "qwen3_vl"


def test_there_are_as_many_bins_as_the_tokenizer_has(processor_of, tmp_path):
    processor = processor_of("qwen2_vl")
    processor.tokenizer.add_tokens([f"<loc_{number}>" for number in range(64)])
    processor.tokenizer.init_kwargs[KEY] = "loc"
    processor.save_pretrained(tmp_path)
    codec = codec_for(AutoProcessor.from_pretrained(tmp_path)).codec
    view = View((640, 480), (640, 480))
    written = codec.write([Box((0.0, 0.25, 0.5, 1.0), image=0)], [view])
    assert written.text == "<loc_0><loc_16><loc_32><loc_63>"
    assert {number.whole for number in written.coordinates} == {63}
    (box,) = codec.read(written.text, [view]).items
    assert box.numbers == pytest.approx((0.0, 0.25, 0.5, 1.0), abs=0.5 / 63)
