"""The Idefics line: a picture is seen whole and in tiles, each with its place written before it."""

from typing import Any

from transformers import (
    Idefics2Config,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_TILES = (
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_SIZES: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
"""Pictures become at most 2×2 tiles and an overview, of 4 tokens each."""


def _template(begin: str) -> str:
    return (
        begin + "{% for message in messages %}"
        "{{ message.role | capitalize + (':' if message.content[0].type == 'image' else ': ') }}"
        "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "{{ '<end_of_utterance>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )


def _config(kind: Any) -> Any:
    def make(ids: Ids, text: dict) -> PretrainedConfig:
        return kind(
            vision_config={**VISION_SIZE, "image_size": 32, "patch_size": 8},
            text_config={"model_type": "llama", **text},
            image_token_id=ids["<image>"],
            pad_token_id=text["pad_token_id"],
            scale_factor=2,
        )

    return make


# --- SmolVLM: one start token for the whole chat; a space after the colon only before text -----------------
def _smolvlm_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**_SIZES),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**_SIZES, num_frames=64, fps=1),
        image_seq_len=4,
        chat_template=template,
    )


SMOLVLM = Family(
    pad="<|im_end|>",
    eos="<end_of_utterance>",
    bos="<|im_start|>",
    special=_TILES,
    template=_template("<|im_start|>"),
    config=_config(SmolVLMConfig),
    processor=_smolvlm_processor,
    video=True,
)


# --- Idefics3: as SmolVLM, after Llama 3's begin token; turns end in a token that isn't the tokenizer's eos
def _idefics3_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**_SIZES),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template,
    )


IDEFICS3 = Family(
    pad="<|finetune_right_pad_id|>",
    eos="<|end_of_text|>",
    bos="<|begin_of_text|>",
    special=("<end_of_utterance>", *_TILES),
    template=_template("<|begin_of_text|>"),
    config=_config(Idefics3Config),
    processor=_idefics3_processor,
    adds_bos=True,
    also_ends=("<end_of_utterance>",),
)


# --- Idefics2: pictures whole, resampled to a few tokens between two marks; neighbours share a mark
def _idefics2_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Idefics2Config(
        vision_config={**VISION_SIZE, "image_size": 64, "patch_size": 16},
        perceiver_config={
            "hidden_size": text["hidden_size"],
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        text_config={"model_type": "mistral", "sliding_window": None, **text},
        image_token_id=ids["<image>"],
    )


def _idefics2_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template,
    )


IDEFICS2 = Family(
    pad="<unk>",
    eos="</s>",
    bos="<s>",
    special=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
    template=_template(""),
    config=_idefics2_config,
    processor=_idefics2_processor,
    adds_bos=True,
    also_ends=("<end_of_utterance>",),
)
