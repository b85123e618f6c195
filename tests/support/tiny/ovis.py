"""Ovis 2: a picture's tokens are chosen from a vocabulary of its own, whose words the projector embeds."""

from transformers import (
    Ovis2Config,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""What stands around and between the tiles of a picture, in the order of the configuration."""

# ChatML behind a system prompt of its own, even where one is given; a new line behind each picture.
_TEMPLATE = (
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _config(ids: Ids, text: dict) -> PretrainedConfig:
    return Ovis2Config(
        vision_config={
            **VISION_SIZE,
            "image_size": 32,
            "patch_size": 8,
            "hidden_stride": 2,
            "vocab_size": 128,
        },
        text_config={"model_type": "qwen2", **text},
        image_token_id=ids["<IMG_ATOM>"],
        visual_indicator_token_ids=[ids[token] for token in _INDICATORS],
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
    )


def _processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    images = Ovis2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    return Ovis2Processor(
        image_processor=images, tokenizer=tokenizer, chat_template=template, image_seq_length=4
    )


OVIS2 = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>", "<IMG_ATOM>", *_INDICATORS),
    template=_TEMPLATE,
    config=_config,
    processor=_processor,
)
