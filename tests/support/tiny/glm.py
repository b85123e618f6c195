"""GLM-4.1V, GLM-4.6V and GLM-OCR: positions in three axes, and answers that the next turn ends."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VConfig,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GlmOcrConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import Family, Ids

_MEDIA = ("image", "video")
_PARTS = (
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}{{ '<|begin_of_' + part.type + '|><|' + part.type + '|><|end_of_' + part.type + '|>' }}"
    "{% endif %}"
    "{% endfor %}"
)

# --- GLM-4.1V: system turns and answers are written as they are, so that they must be texts, not parts
_GLM4V_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' }}"
    "{% if message.content is string or message.role != 'user' %}{{ message.content }}"
    "{% else %}" + _PARTS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# --- GLM-4.6V: before each answer stands what was thought, be it nothing; answers are stripped
_GLM46V_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for message in messages %}"
    "{% set content %}"
    "{% if message.content is string %}{{ message.content }}{% else %}" + _PARTS + "{% endif %}"
    "{% endset %}"
    "{{ '<|' + message.role + '|>\n' }}"
    "{% if message.role == 'assistant' %}"
    "{{ '<think></think>' }}{% if content | trim %}{{ '\n' + content | trim }}{% endif %}"
    "{% else %}"
    "{{ content }}"
    "{% if message.role == 'user' and enable_thinking is false and not content.endswith('/nothink') %}"
    "{{ '/nothink' }}"
    "{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|assistant|>\n' + ('<think></think>\n' if enable_thinking is false else '') }}"
    "{% endif %}"
)


def glm_ids(ids: Ids) -> dict[str, Any]:
    """The tokens that stand for pictures and videos, as configurations name them."""
    named: dict[str, Any] = {}
    for medium in _MEDIA:
        named[f"{medium}_token_id"] = ids[f"<|{medium}|>"]
        named[f"{medium}_start_token_id"] = ids[f"<|begin_of_{medium}|>"]
        named[f"{medium}_end_token_id"] = ids[f"<|end_of_{medium}|>"]
    return named


def glm_sizes(text: dict) -> dict[str, Any]:
    """The tower, and the language model, which rotates a half of each head."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "depth": 2,
        "num_heads": 4,
        "image_size": 84,
        "patch_size": 14,
        "out_hidden_size": text["hidden_size"],
    }
    return {"vision_config": vision, "text_config": {**text, "rope_parameters": rope}}


def _config(kind: Any, **own: Mapping[str, Any]) -> Any:
    """Of one of the classes, with settings of its own for the vision and the text configuration."""

    def make(ids: Ids, text: dict) -> PretrainedConfig:
        sizes = glm_sizes(text)
        for part, settings in own.items():
            sizes[part] = {**sizes[part], **settings}
        return kind(**sizes, tie_word_embeddings=False, **glm_ids(ids))

    return make


def glm_processor(processor: Any, images: Any, videos: Any) -> Any:
    """Between 4 and 9 tokens a picture, of 28 × 28 pixels each; a picture counts as two frames."""

    def make(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
        size = {"shortest_edge": 2 * 4 * 28**2, "longest_edge": 2 * 9 * 28**2}
        of_videos = {"shortest_edge": 4 * 4 * 28**2, "longest_edge": 4 * 9 * 28**2}
        return processor(
            image_processor=images(size=size),
            tokenizer=tokenizer,
            video_processor=videos(size=of_videos),
            chat_template=template,
        )

    return make


def glm_family(config: Any, processor: Any, template: str) -> Family:
    """A family with the tokens of the GLM line."""
    marks = [f"<|{end}_of_{medium}|>" for medium in _MEDIA for end in ("begin", "end")]
    return Family(
        pad="<|endoftext|>",
        eos="<|endoftext|>",
        bos=None,
        special=(
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            *marks,
            *(f"<|{medium}|>" for medium in _MEDIA),
        ),
        template=template,
        config=config,
        processor=processor,
        padding_side="left",
        also_ends=("<|user|>", "<|observation|>"),
        video=True,
    )


GLM4V = glm_family(
    _config(Glm4vConfig),
    glm_processor(Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor),
    _GLM4V_TEMPLATE,
)
_PROCESSOR46 = glm_processor(Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor)
GLM46V = glm_family(
    _config(
        Glm46VConfig,
        vision_config={"model_type": "glm4v_vision"},
        text_config={"model_type": "glm4v_text"},
    ),
    _PROCESSOR46,
    _GLM46V_TEMPLATE,
)
GLM_OCR = glm_family(_config(GlmOcrConfig), _PROCESSOR46, _GLM46V_TEMPLATE)
