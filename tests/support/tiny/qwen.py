"""The Qwen-VL line: pictures of any size, positions in three axes."""

from typing import Any

from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support.tiny.family import Family, Ids

_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
)


def _chatml(writes: str = "true", shows: str = "true") -> str:
    """ChatML of the messages that it writes, with pictures and videos of those that it shows; in Jinja."""
    return (
        "{% for message in messages %}{% if " + writes + " %}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}"
        "{% elif " + shows + " %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
        "{% endfor %}{% endif %}"
        "{{ '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def qwen_ids(ids: Ids) -> dict[str, Any]:
    """The tokens that stand for pictures and videos, as configurations name them."""
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def mrope(text: dict, **more: Any) -> dict:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3], **more}
    return {**text, "rope_parameters": rope}


def qwen_processor(processor: Any, video: Any, side: int) -> Any:
    """Between 4 and 9 tokens a picture, of `side` × `side` pixels each; about as many for two frames."""

    def make(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
        pixels: dict[str, Any] = {"min_pixels": 4 * side**2, "max_pixels": 9 * side**2}
        images = Qwen2VLImageProcessor(patch_size=side // 2, **pixels)
        size = {"shortest_edge": 4 * side**2, "longest_edge": 9 * side**2}
        if video is Qwen3VLVideoProcessor:  # counts all frames of a video
            size = {"shortest_edge": 16 * side**2, "longest_edge": 36 * side**2}
        videos = video(patch_size=side // 2, size=size, cap_pixels_per_frame=False)
        return processor(
            image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=template
        )

    return make


def qwen_family(config: Any, processor: Any, template: str) -> Family:
    """A family with the tokens of the Qwen-VL line."""
    return Family(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        bos=None,
        special=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        template=template,
        config=config,
        processor=processor,
        also_ends=("<|endoftext|>",),
        video=True,
    )


# --- Qwen2-VL: ChatML with a system prompt of its own where none is given ----------------------------------
def _qwen2_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Qwen2VLConfig(
        vision_config={
            "embed_dim": 48,
            "hidden_size": text["hidden_size"],
            "depth": 2,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        text_config=mrope(text),
        tie_word_embeddings=True,
        **qwen_ids(ids),
    )


QWEN2_VL = qwen_family(
    _qwen2_vl_config, qwen_processor(Qwen2VLProcessor, Qwen2VLVideoProcessor, 28), _SYSTEM + _chatml()
)


# --- Qwen2.5-VL: as Qwen2-VL --------------------------------------------------------------------------------
def _qwen2_5_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": text["hidden_size"],
        },
        text_config=mrope(text),
        tie_word_embeddings=True,
        **qwen_ids(ids),
    )


QWEN2_5_VL = qwen_family(
    _qwen2_5_vl_config, qwen_processor(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 28), _SYSTEM + _chatml()
)


# --- Qwen3-VL: ChatML without a system prompt of its own; a system turn only where it is first, and pictures
# --- only in questions: it leaves out others
QWEN3_VL_TEMPLATE = _chatml("message.role != 'system' or loop.first", "message.role == 'user'")


def qwen3_vl_config(ids: Ids, text: dict) -> PretrainedConfig:
    """Features of the tower's first block enter the language model's first layer (DeepStack)."""
    return Qwen3VLConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 16,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
        },
        text_config={**mrope(text, mrope_interleaved=True), "head_dim": 16},
        tie_word_embeddings=True,
        **qwen_ids(ids),
    )


QWEN3_VL = qwen_family(
    qwen3_vl_config, qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 32), QWEN3_VL_TEMPLATE
)
