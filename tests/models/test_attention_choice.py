"""What may be written as attn_implementation, and one clear error for each that can't be had."""

from importlib.util import find_spec

import pytest

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention.choice import CHOICES
from lightning_vlm.models.loading.load import load_model


def attentions(model):
    return model.get_decoder().config._attn_implementation, model.get_encoder(
        modality="image"
    ).config._attn_implementation


@pytest.mark.parametrize(
    ("family", "attn_implementation", "language", "vision"),
    [
        ("qwen2_5_vl", "auto", "flash_varlen", "flash_varlen"),
        ("qwen2_5_vl", "flash_varlen", "flash_varlen", "flash_varlen"),
        ("qwen2_5_vl", None, "flash_varlen", "flash_varlen"),
        ("llava", "flash_varlen", "flash_varlen", "sdpa"),
        ("gemma3", "auto", "sdpa", "sdpa"),
        ("gemma3", "flex_attention", "flex_attention", "flex_attention"),
        ("paligemma", "auto", "eager", "sdpa"),
        ("qwen2_5_vl", "sdpa", "sdpa", "sdpa"),
        ("qwen2_5_vl", "eager", "eager", "eager"),
    ],
)
def test_what_a_choice_gives(family, attn_implementation, language, vision, tiny_folder):
    model = load_model(tiny_folder(family), attn_implementation=attn_implementation).model
    assert attentions(model) == (language, vision)


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("spda", "sdpa"),
        ("SDPA", "sdpa"),
        ("flash_attention", "flash_attention_2"),
        ("flash-attention-3", "flash_attention_3"),
        ("flashvarlen", "flash_varlen"),
        ("egaer", "eager"),
        ("flex", "flex_attention"),
    ],
)
def test_a_wrong_word_gets_the_nearest(written, near, tiny_folder):
    with pytest.raises(UserError) as caught:
        load_model(tiny_folder("llava"), attn_implementation=written)
    message = str(caught.value)
    assert message.startswith(f"attn_implementation: found '{written}'; expected auto, flash_varlen, sdpa")
    assert message.endswith(f"; did you mean {near}?")


def test_a_word_that_is_near_none_gets_the_list(tiny_folder):
    with pytest.raises(UserError) as caught:
        load_model(tiny_folder("llava"), attn_implementation="fast")
    assert all(choice in str(caught.value) for choice in CHOICES)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is installed")
@pytest.mark.parametrize(
    ("family", "attn_implementation", "message"),
    [
        (
            "qwen2_5_vl",
            "flash_attention_2",
            r"flash_attention_2: .*; auto needs no package: it takes PyTorch's",
        ),
        (
            "qwen2_5_vl",
            "flash_attention_3",
            r"flash_attention_3: .*; auto needs no package: it takes PyTorch's",
        ),
        (
            "mllama",
            "flash_attention_2",
            r"MllamaFor\w+ has no flash_attention_2 in transformers; expected auto",
        ),
        ("qwen2_5_vl", "flex_attention", r"Qwen\w+ has no flex_attention in transformers; expected auto"),
        ("paligemma", "sdpa", r"Gemma2Model has no sdpa in transformers; expected auto"),
        (
            "gemma3",
            "flash_varlen",
            r"found flash_varlen, which isn't exact for Gemma3\w+: tokens of a picture or a question see",
        ),
        ("paligemma", "flash_varlen", r"isn't exact for PaliGemma\w+: tokens of a picture"),
        ("mllama", "flash_varlen", r"isn't exact for Mllama\w+: its tokens see pictures by cross-attention"),
    ],
)
def test_what_cant_be_had_is_one_clear_error(family, attn_implementation, message, tiny_folder):
    with pytest.raises(UserError, match=rf"attn_implementation: .*{message}") as caught:
        load_model(tiny_folder(family), attn_implementation=attn_implementation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 330
