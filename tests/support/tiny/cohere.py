"""Cohere's Aya Vision and Command A Vision. Pictures are cut into tiles, whose tokens stand between marks."""

from typing import Any

from transformers import (
    AyaVisionConfig,
    AyaVisionProcessor,
    Cohere2VisionConfig,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_SIDE, _PATCH = 32, 8
_SIZE = {"height": _SIDE, "width": _SIDE}
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    **VISION_SIZE,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "vision_use_head": False,
}
_TURN = "<|START_OF_TURN_TOKEN|>"
_END = "<|END_OF_TURN_TOKEN|>"


def _template(picture: str) -> str:
    """Always a system turn, if only an empty one; answers between marks of their own."""
    return (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}"
        "{% set given = messages[0].content %}{% set turns = messages[1:] %}"
        "{% set given = given if given is string else given[0].text %}"
        "{% else %}{% set given = '' %}{% set turns = messages %}{% endif %}"
        f"{{{{ '{_TURN}<|SYSTEM_TOKEN|>' + given + '{_END}' }}}}"
        "{% for turn in turns %}"
        f"{{{{ '{_TURN}' + ('<|USER_TOKEN|>' if turn.role == 'user' else '<|CHATBOT_TOKEN|>') }}}}"
        "{% if turn.role == 'assistant' %}<|START_RESPONSE|>{% endif %}"
        "{% for part in turn.content %}"
        f"{{{{ '{picture}' if part.type == 'image' else part.text | trim }}}}"
        "{% endfor %}"
        "{% if turn.role == 'assistant' %}<|END_RESPONSE|>{% endif %}"
        f"{{{{ '{_END}' }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{_TURN}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{% endif %}}"
    )


def _text(text: dict) -> dict:
    """Cohere 2: layers with a sliding window have rotary positions, the others none."""
    return {
        "model_type": "cohere2",
        "head_dim": 16,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "logit_scale": 0.25,
        **text,
    }


def _family(picture: str, config: Any, processor: Any, *special: str, **more: Any) -> Family:
    return Family(
        pad="<PAD>",
        eos=_END,
        bos="<BOS_TOKEN>",
        special=(
            _TURN,
            "<|SYSTEM_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
            *special,
        ),
        template=_template(picture),
        config=config,
        processor=processor,
        adds_bos=True,
        padding_side="left",
        **more,
    )


# --- Aya Vision: tiles are numbered, in words; the overview comes last --------------------------------------
def _aya_vision_config(ids: Ids, text: dict) -> PretrainedConfig:
    return AyaVisionConfig(
        vision_config=_SIGLIP,
        text_config=_text(text),
        image_token_index=ids["<|IMG_PATCH|>"],
        downsample_factor=2,
    )


def _aya_vision_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    return AyaVisionProcessor(
        image_processor=GotOcr2ImageProcessor(size=_SIZE, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        img_size=_SIDE,
        downsample_factor=2,
        chat_template=template,
    )


AYA_VISION = _family(
    "<image>",
    _aya_vision_config,
    _aya_vision_processor,
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "TILE",
    "TILE_GLOBAL",
    "<image>",
)


# --- Command A Vision: each tile ends in a token ------------------------------------------------------------
def _cohere2_vision_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Cohere2VisionConfig(
        vision_config=_SIGLIP,
        text_config=_text(text),
        image_token_id=ids["<|IMG_PATCH|>"],
        downsample_factor=2,
        alignment_intermediate_size=96,
    )


def _cohere2_vision_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """At most 4 tiles and an overview of `patch_size` × `patch_size` tokens each."""
    images: Any = Cohere2VisionImageProcessor(size=_SIZE, max_patches=4, patch_size=2)
    return Cohere2VisionProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


COHERE2_VISION = _family(
    "<|IMG_PATCH|>",
    _cohere2_vision_config,
    _cohere2_vision_processor,
    named={
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    },
)
