"""DeepSeek's: DeepSeek-VL, and DeepSeek-OCR 2 with a mixture of experts."""

from typing import Any

from transformers import (
    DeepseekOcr2Config,
    DeepseekOcr2ImageProcessor,
    DeepseekOcr2Processor,
    DeepseekVLConfig,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_BEGIN, _END, _PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"

# --- DeepSeek-VL: roles as words, texts stripped at the ends of their turn, a prompt of its own before any
# --- system turn; the last answer of a chat has no end
_DEEPSEEK_VL_TEMPLATE = (
    "{{ 'You are a helpful language and vision assistant. You are able to understand the visual content that "
    "the user provides, and assist the user with a variety of tasks using natural language.\n\n' }}"
    "{% for message in messages %}"
    "{% set answers = message.role == 'assistant' %}"
    "{{ message.role | capitalize + ':' }}"
    "{% set first = message.content[0] %}"
    "{% set silent = loop.last and not add_generation_prompt and first.type == 'text' and not first.text %}"
    "{% if not (answers and silent) %}{{ ' ' }}{% endif %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image_placeholder>{% else %}"
    "{% set text = part.text.lstrip() if loop.first else part.text %}"
    "{% set text = text.rstrip() if loop.last else text %}"
    "{{ ' ' + text if not loop.first and loop.previtem.type == 'text' else text }}"
    "{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}"
    f"{{{{ '\n\n' if message.role == 'user' else '{_END}' }}}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _deepseek_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    return DeepseekVLConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION_SIZE,
            "image_size": 32,
            "patch_size": 16,
            "vision_use_head": False,
        },
        text_config={"model_type": "llama", **text},
        image_token_id=ids["<image_placeholder>"],
        tie_word_embeddings=False,
    )


def _deepseek_vl_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """A picture is 4 tokens."""
    images = DeepseekVLImageProcessor(size={"height": 32, "width": 32}, min_size=4)
    return DeepseekVLProcessor(
        image_processor=images, tokenizer=tokenizer, chat_template=template, num_image_tokens=4
    )


DEEPSEEK_VL = Family(
    pad=_PAD,
    eos=_END,
    bos=_BEGIN,
    special=(),
    template=_DEEPSEEK_VL_TEMPLATE,
    config=_deepseek_vl_config,
    processor=_deepseek_vl_processor,
    named={"image_token": "<image_placeholder>"},
    adds_bos=True,
)


# --- DeepSeek-OCR 2: no chat template; a picture is read by as many queries as the tower has, 144 or 256 --
def _deepseek_ocr2_config(ids: Ids, text: dict) -> PretrainedConfig:
    """The tower: SAM's without layers that see all of a picture, then a language model's layers."""
    small: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2}
    return DeepseekOcr2Config(
        vision_config={
            "sam_config": {
                **small,
                "hidden_size": 16,
                "image_size": 96,
                "patch_size": 2,
                "output_channels": 16,
                "downsample_channels": [24, 32],
                "global_attn_indexes": [],
                "initializer_range": 0.02,
            },
            "encoder_config": {
                **small,
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_key_value_heads": 1,
                "vocab_size": 1,
            },
        },
        text_config={
            **text,
            "mlp_layer_types": ["dense", "sparse"],
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
        image_token_id=ids["<image>"],
    )


def _deepseek_ocr2_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """A picture is 145 tokens; where it has more than 96 pixels in a side, 144 more for each tile."""
    images = DeepseekOcr2ImageProcessor(size={"height": 96, "width": 96}, tile_size=96)
    return DeepseekOcr2Processor(
        image_processor=images, tokenizer=tokenizer, chat_template=template, patch_size=2
    )


DEEPSEEK_OCR2 = Family(
    pad=_PAD,
    eos=_END,
    bos=_BEGIN,
    special=("<image>",),
    template=None,
    config=_deepseek_ocr2_config,
    processor=_deepseek_ocr2_processor,
    adds_bos=True,
)
