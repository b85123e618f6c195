"""Molmo 2: pictures come first, seen whole and in crops, and their tokens see one another both ways."""

from typing import Any

from transformers import (
    Molmo2Config,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_EXTRA = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
)
_NAMED = {"image_token": "<|image|>", "video_token": "<|video|>"}

# All pictures stand before the first turn, with numbers if they are several. User and assistant must take
# turns. The end of an answer is written before the next question, so the last answer of a chat has none.
# There is a space before the turn of an answer, but not where one is asked for.
_TEMPLATE = (
    "{% set pictures = namespace(number=0, seen=0) %}"
    "{% for message in messages %}{% for part in message.content if part.type == 'image' %}"
    "{% set pictures.number = pictures.number + 1 %}"
    "{% endfor %}{% endfor %}"
    "{% for place in range(pictures.number) %}"
    "{{ 'Image ' ~ (place + 1) if pictures.number > 1 }}{{ '<|image|>' }}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{% set asks = message.role == 'user' %}"
    "{% if asks != (loop.index0 % 2 == 0) or not asks and message.role != 'assistant' %}"
    "{{ raise_exception('user and assistant must take turns') }}"
    "{% endif %}"
    "{% set texts = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') %}"
    "{{ '<|im_end|>\n' if asks and not loop.first }}{{ ' ' if not asks }}"
    "{{ '<|im_start|>' + message.role + '\n' + texts | join(' ') }}"
    "{{ '<|im_end|>\n' if asks }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _config(ids: Ids, text: dict) -> PretrainedConfig:
    """As published, the head doesn't know the tokens of pictures, which have the highest ids."""
    size = text["vocab_size"] - len(_EXTRA) - len(_NAMED)
    assert sorted(ids[token] for token in (*_EXTRA, *_NAMED.values())) == list(
        range(size, text["vocab_size"])
    )
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
    wide: dict[str, Any] = {**heads, "initializer_range": 0.2}  # else next to nothing would come of a picture
    return Molmo2Config(
        vision_config={**VISION_SIZE, **wide, "image_size": [32, 32], "patch_size": 8},
        adapter_config={
            **wide,
            "hidden_size": 48,
            "intermediate_size": 96,
            "text_hidden_size": text["hidden_size"],
            "vision_feature_layer": [1, 0],
        },
        text_config={
            **text,
            "vocab_size": size,
            "additional_vocab_size": text["vocab_size"] - size,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )


def _processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """A picture is 4 tokens, and 4 to 9 more of at most 2 crops."""
    size = {"height": 32, "width": 32}
    sizes: dict[str, Any] = {"size": size, "patch_size": 8}
    return Molmo2Processor(
        image_processor=Molmo2ImageProcessor(**sizes, max_crops=2, overlap_margins=[1, 1]),
        video_processor=Molmo2VideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=template,
    )


MOLMO2 = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos="<|im_end|>",
    special=("<|im_start|>", *_EXTRA),
    template=_TEMPLATE,
    config=_config,
    processor=_processor,
    named=_NAMED,
    padding_side="left",
)
