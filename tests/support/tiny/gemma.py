"""Google's: PaliGemma and Gemma 3. Pictures are seen both ways, and PaliGemma's question too."""

from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessor,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_SIDE, _PATCH = 32, 8
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    **VISION_SIZE,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "vision_use_head": False,
}
_SIZE = {"height": _SIDE, "width": _SIDE}
_WINDOW = 32
"""Tokens that layers with a sliding window see; shorter than most chats."""


# --- PaliGemma 2: no chat template. Its processor writes pictures, <bos>, the question and a new line -------
def _paligemma_config(ids: Ids, text: dict) -> PretrainedConfig:
    return PaliGemmaConfig(
        vision_config=_SIGLIP,
        text_config={
            "model_type": "gemma2",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": _WINDOW,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            **text,
        },
        image_token_index=ids["<image>"],
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )


def _paligemma_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    images: Any = SiglipImageProcessor(size=_SIZE)
    images.image_seq_length = (_SIDE // _PATCH) ** 2
    return PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


PALIGEMMA = Family(
    pad="<pad>",
    eos="<eos>",
    bos="<bos>",
    special=("<image>",),
    template=None,
    config=_paligemma_config,
    processor=_paligemma_processor,
)


# --- Gemma 3: <bos>, turns of "user" and "model" that must alternate, texts stripped; a system turn goes into
# --- the first question
GEMMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set given = messages[0].content %}{% set turns = messages[1:] %}"
    "{% set lead = (given if given is string else given[0].text) + '\n\n' %}"
    "{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}"
    "{% endif %}"
    "{{ '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}"
    "{% if loop.first %}{{ lead }}{% endif %}"
    "{% if turn.content is string %}{{ turn.content | trim }}{% else %}"
    "{% for part in turn.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _gemma3_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Gemma3Config(
        vision_config=_SIGLIP,
        text_config={
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": _WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            **text,
        },
        mm_tokens_per_image=4,
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
    )


def _gemma3_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=_SIZE, image_seq_length=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=template,
    )


GEMMA3 = Family(
    pad="<pad>",
    eos="<eos>",
    bos="<bos>",
    special=("<start_of_turn>", "<end_of_turn>"),
    template=GEMMA3_TEMPLATE,
    config=_gemma3_config,
    processor=_gemma3_processor,
    named={
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    adds_bos=True,
    padding_side="left",
    also_ends=("<end_of_turn>",),
)
