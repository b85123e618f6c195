"""LLaVA's relatives: with videos (LLaVA-NeXT-Video, Video-LLaVA), or features of many layers (ViP-LLaVA)."""

from typing import Any

from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    VideoLlavaConfig,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    VipLlavaConfig,
)

from tests.support.tiny.family import Family, Ids
from tests.support.tiny.llava import CLIP, CROP, PATCH, SIDE

_VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | upper + ': ' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ part.text + ' ' }}{% endgeneration %}"
    "{% else %}{{ part.text + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As LLaVA 1.5's, with videos behind the pictures."""


def _vicuna(config: Any, processor: Any, *special: str, template: str = _VICUNA_TEMPLATE) -> Family:
    return Family(
        pad="<pad>",
        eos="</s>",
        bos="<s>",
        special=("<image>", *special),
        template=template,
        config=config,
        processor=processor,
        adds_bos=True,
        padding_side="left",
        video="<video>" in special,
    )


# --- LLaVA-NeXT-Video: LLaVA-NeXT's tiles, and frames that are pooled to a quarter: an even number of patches
_NEXT_SIDE = 28
_PINPOINTS = [[28, 56], [56, 28], [56, 56]]
_NEXT_CROP: dict[str, Any] = {
    "size": {"shortest_edge": _NEXT_SIDE},
    "crop_size": {"height": _NEXT_SIDE, "width": _NEXT_SIDE},
}


def _llava_next_video_config(ids: Ids, text: dict) -> PretrainedConfig:
    return LlavaNextVideoConfig(
        vision_config={**CLIP, "image_size": _NEXT_SIDE},
        text_config={"model_type": "llama", **text},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_next_video_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**_NEXT_CROP),
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=_PINPOINTS, **_NEXT_CROP),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


LLAVA_NEXT_VIDEO = _vicuna(_llava_next_video_config, _llava_next_video_processor, "<video>")


# --- Video-LLaVA: a tower for pictures and one for videos, whose class tokens are kept ----------------------
def _video_llava_config(ids: Ids, text: dict) -> PretrainedConfig:
    return VideoLlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **text},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _video_llava_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**CROP),
        video_processor=VideoLlavaVideoProcessor(**CROP),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


VIDEO_LLAVA = _vicuna(_video_llava_config, _video_llava_processor, "<video>")


# --- ViP-LLaVA: features of several layers beside one another; "###" before each role -----------------------
_VIPLLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}"
    "{{ '###Human: ' if message.role == 'user' else '###Assistant: ' }}"
    "{% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}###Assistant:{% endif %}"
)


def _vipllava_config(ids: Ids, text: dict) -> PretrainedConfig:
    return VipLlavaConfig(
        vision_config=CLIP,
        text_config={"model_type": "llama", **text},
        image_token_index=ids["<image>"],
        vision_feature_layer=[-2, -3],
        image_seq_length=(SIDE // PATCH) ** 2,
    )


def _vipllava_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**CROP),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


VIPLLAVA = _vicuna(_vipllava_config, _vipllava_processor, template=_VIPLLAVA_TEMPLATE)
