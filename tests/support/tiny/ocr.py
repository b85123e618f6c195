"""Models that read documents: LightOnOCR and GOT-OCR 2."""

from typing import Any

from transformers import (
    GotOcr2Config,
    GotOcr2ImageProcessor,
    GotOcr2Processor,
    LightOnOcrConfig,
    LightOnOcrProcessor,
    PixtralImageProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

# --- LightOnOCR: ChatML with an empty system turn where none is given ------------------------------------
_LIGHTON_OCR_TEMPLATE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{{ '<|image_pad|>' if part.type == 'image' else part.text }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _lighton_ocr_config(ids: Ids, text: dict) -> PretrainedConfig:
    return LightOnOcrConfig(
        vision_config={
            "model_type": "pixtral",
            **VISION_SIZE,
            "head_dim": 12,
            "image_size": 56,
            "patch_size": 7,
        },
        text_config={"model_type": "qwen3", **text, "head_dim": 16},
        image_token_id=ids["<|image_pad|>"],
    )


def _lighton_ocr_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """At most 4×4 tokens a picture, of 14×14 pixels each."""
    return LightOnOcrProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=7,
        chat_template=template,
    )


LIGHTON_OCR = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>",),
    template=_LIGHTON_OCR_TEMPLATE,
    config=_lighton_ocr_config,
    processor=_lighton_ocr_processor,
    named={
        "image_token": "<|image_pad|>",
        "image_break_token": "<|vision_pad|>",
        "image_end_token": "<|vision_end|>",
    },
)


# --- GOT-OCR 2: no chat template; its processor writes a prompt where none is given -----------------------
def _got_ocr2_config(ids: Ids, text: dict) -> PretrainedConfig:
    """SAM's tower, of whose 64×64 patches 16×16 tokens are made, without layers that see all of a picture."""
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 1,
        "global_attn_indexes": [],
        "mlp_dim": 32,
        "initializer_range": 0.02,
    }
    return GotOcr2Config(
        vision_config=vision,
        text_config={"model_type": "qwen2", **text, "tie_word_embeddings": True},
        image_token_index=ids["<imgpad>"],
    )


def _got_ocr2_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """A picture is 256 tokens; the processor saves no other number."""
    return GotOcr2Processor(
        image_processor=GotOcr2ImageProcessor(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        chat_template=template,
    )


GOT_OCR2 = Family(
    pad="<|endoftext|>",
    eos="<|endoftext|>",
    bos="<|endoftext|>",
    special=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"),
    template=None,
    config=_got_ocr2_config,
    processor=_got_ocr2_processor,
    also_ends=("<|im_end|>",),
)
