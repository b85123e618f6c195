"""LLaVA and what came of it: tower, projector, language model."""

from typing import Any

from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

SIDE, PATCH = 42, 14
_PINPOINTS = [[42, 84], [84, 42], [84, 84]]
"""Resolutions that pictures are cut into tiles of."""
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    **VISION_SIZE,
    "num_hidden_layers": 3,
    "projection_dim": 48,
    "image_size": SIDE,
    "patch_size": PATCH,
}
CROP: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


# --- LLaVA 1.5: images first, roles in capitals, nothing after an answer but a space -----------------------
_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | upper }}: {% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ part.text + ' ' }}{% endgeneration %}"
    "{% else %}{{ part.text + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _llava_config(ids: Ids, text: dict) -> PretrainedConfig:
    """As published, features leave the tower one layer early: its last layer never gets a gradient."""
    return LlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **text},
        image_token_index=ids["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**CROP),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


LLAVA = Family(
    pad="<pad>",
    eos="</s>",
    bos="<s>",
    special=("<image>",),
    template=_LLAVA_TEMPLATE,
    config=_llava_config,
    processor=_llava_processor,
    adds_bos=True,
    padding_side="left",
)


# --- LLaVA-NeXT (on Mistral): questions between [INST] and [/INST], images first; an answer behind a space,
# --- then </s>; no generation prompt
_LLAVA_NEXT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ '<<SYS>>\n' + message.content[0].text + '\n<</SYS>>\n\n' }}"
    "{% elif message.role == 'user' %}"
    "{{ '[INST] ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content[0].text + '</s> ' }}{% endif %}"
    "{% endfor %}"
)


def _llava_next_config(ids: Ids, text: dict) -> PretrainedConfig:
    return LlavaNextConfig(
        vision_config=CLIP,
        text_config={"model_type": "mistral", "sliding_window": None, **text},
        image_token_index=ids["<image>"],
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_next_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=_PINPOINTS, **CROP),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


LLAVA_NEXT = Family(
    pad="<pad>",
    eos="</s>",
    bos="<s>",
    special=("<image>",),
    template=_LLAVA_NEXT_TEMPLATE,
    config=_llava_next_config,
    processor=_llava_next_processor,
    adds_bos=True,
    padding_side="left",
)


# --- LLaVA-OneVision: ChatML, but a space behind the role, images, videos, then each text on a new line; the
# --- generation prompt lacks the space, so answers never begin quite as it asks
_LLAVA_ONEVISION_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + ' ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message.content if part.type == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ '\n' + part.text }}{% endgeneration %}"
    "{% else %}{{ '\n' + part.text }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _llava_onevision_config(ids: Ids, text: dict) -> PretrainedConfig:
    """Features are those of the last layer before its final norm, which never gets a gradient."""
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION_SIZE,
            "image_size": SIDE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **text},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=_PINPOINTS,
        tie_word_embeddings=True,
    )


def _llava_onevision_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    size = {"height": SIDE, "width": SIDE}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=_PINPOINTS, size=size),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


LLAVA_ONEVISION = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>", "<image>", "<video>"),
    template=_LLAVA_ONEVISION_TEMPLATE,
    config=_llava_onevision_config,
    processor=_llava_onevision_processor,
    video=True,
)
