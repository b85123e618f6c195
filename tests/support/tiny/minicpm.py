"""MiniCPM-V 4.6: Qwen3.5's language model; pictures are seen whole and in slices, in one row of patches."""

from typing import Any

from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6Processor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.minicpmv4_6.image_processing_minicpmv4_6 import MiniCPMV4_6ImageProcessor
from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor

from tests.support.tiny.family import VISION_SIZE, Family, Ids
from tests.support.tiny.qwen3_5 import QWEN3_5_TEMPLATE, qwen3_5_text

# --- Qwen3.5's, but for its tokens around pictures, which the processor writes, and lines between parts
_TEMPLATE = QWEN3_5_TEMPLATE.replace(
    "{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}", "{{ '<|' + part.type + '_pad|>' }}"
).replace(
    "{% endif %}{% endfor %}{% endif %}", "{% endif %}{{ '' if loop.last else '\n' }}{% endfor %}{% endif %}"
)


def _config(ids: Ids, text: dict) -> PretrainedConfig:
    """Four patches become one behind the first layer, and four of these one before the language model."""
    return MiniCPMV4_6Config(
        vision_config={**VISION_SIZE, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "qwen3_5_text", **qwen3_5_text(text), "tie_word_embeddings": True},
        insert_layer_id=0,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=True,
    )


def _processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become about 4 tokens, of 16×16 pixels each, and large ones 2 slices of so many as well."""
    sizes: dict[str, Any] = {"patch_size": 4, "scale_resolution": 32, "max_slice_nums": 2}
    return MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**sizes),
        video_processor=MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=template,
    )


MINICPMV4_6 = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos="<|im_start|>",
    special=(),
    template=_TEMPLATE,
    config=_config,
    processor=_processor,
    named={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    },
)
