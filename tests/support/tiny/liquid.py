"""Liquid AI's: language models of short convolutions and attention in turns; pictures of any size."""

from typing import Any

from transformers import (
    Lfm2VlConfig,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    Lfm3VlConfig,
    Lfm3VlProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

# --- LFM2-VL: ChatML behind a begin token; a large picture is seen in tiles and whole -----------------------
_LFM2_VL_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _lfm2_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            **VISION_SIZE,
            "patch_size": 8,
            "num_patches": 16,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "lfm2",
            **text,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
        image_token_id=ids["<image>"],
        projector_hidden_size=64,
        downsample_factor=2,
    )


def _lfm2_vl_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become 4 to 6 tokens, of 16×16 pixels each, or 2 tiles of 4 tokens and the whole."""
    images: Any = Lfm2VlImageProcessor(
        encoder_patch_size=8,
        tile_size=32,
        min_image_tokens=4,
        max_image_tokens=6,
        max_tiles=2,
        max_pixels_tolerance=4.0,
    )
    return Lfm2VlProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


LFM2_VL = Family(
    pad="<|pad|>",
    eos="<|im_end|>",
    bos="<|startoftext|>",
    special=(
        "<|im_start|>",
        "<|endoftext|>",
        *(f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)),
    ),
    template=_LFM2_VL_TEMPLATE,
    config=_lfm2_vl_config,
    processor=_lfm2_vl_processor,
    named={
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    },
    adds_bos=True,
    padding_side="left",
)


# --- LFM3-VL: ChatML between pictures' marks; half of the layers see a window, pictures' convolutions a grid
_LFM3_VL_TEMPLATE = _LFM2_VL_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")


def _lfm3_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Lfm3VlConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "patch_size": 8,
            "layer_types": ["conv", "full_attention"],
        },
        text_config={
            "model_type": "lfm3",
            **text,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "layer_types": ["conv", "sliding_attention", "full_attention"],
            "sliding_window": 32,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        projector_hidden_size=64,
    )


def _lfm3_vl_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Between 4 and 9 tokens a picture, of 16×16 pixels each."""
    pixels: dict[str, Any] = {"min_pixels": 4 * 16**2, "max_pixels": 9 * 16**2}
    return Lfm3VlProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=8, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=8, **pixels),
        chat_template=template,
    )


LFM3_VL = Family(
    pad="<|pad|>",
    eos="<|im_end|>",
    bos="<|startoftext|>",
    special=(
        "<|im_start|>",
        "<|endoftext|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    template=_LFM3_VL_TEMPLATE,
    config=_lfm3_vl_config,
    processor=_lfm3_vl_processor,
    adds_bos=True,
    padding_side="left",
)
