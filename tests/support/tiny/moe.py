"""Mixtures of experts: four experts, of which each token goes through two, and through one in Llama 4."""

from typing import Any

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Llama4Config,
    Llama4ImageProcessor,
    Llama4Processor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3_5MoeConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids
from tests.support.tiny.glm import GLM46V, glm_family, glm_ids, glm_processor, glm_sizes
from tests.support.tiny.qwen import QWEN3_VL_TEMPLATE, qwen3_vl_config, qwen_family, qwen_processor
from tests.support.tiny.qwen3_5 import QWEN3_5_TEMPLATE, qwen3_5_config

MIXTURES = ("qwen3_vl_moe", "qwen3_5_moe", "ernie4_5_vl_moe", "glm4v_moe", "deepseek_ocr2", "llama4")
"""The families with experts."""
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _mixture(kind: Any, dense: PretrainedConfig, **experts: Any) -> PretrainedConfig:
    """A configuration like that of a dense family, with experts and a head of its own."""
    like = dense.to_dict()
    for part in ("text_config", "vision_config"):
        del like[part]["model_type"]
    like["text_config"] |= experts
    return kind(**{**like, "tie_word_embeddings": False})


# --- Qwen3-VL's mixture: as Qwen3-VL, with experts in each layer --------------------------------------------
def _qwen3_vl_moe_config(ids: Ids, text: dict) -> PretrainedConfig:
    return _mixture(Qwen3VLMoeConfig, qwen3_vl_config(ids, text), **_EXPERTS)


QWEN3_VL_MOE = qwen_family(
    _qwen3_vl_moe_config, qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 32), QWEN3_VL_TEMPLATE
)


# --- Qwen3.5's mixture: as Qwen3.5, with experts and one that all tokens share in each layer ----------------
def _qwen3_5_moe_config(ids: Ids, text: dict) -> PretrainedConfig:
    dense = qwen3_5_config(ids, text)
    return _mixture(Qwen3_5MoeConfig, dense, **_EXPERTS, shared_expert_intermediate_size=32)


QWEN3_5_MOE = qwen_family(
    _qwen3_5_moe_config, qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 32), QWEN3_5_TEMPLATE
)


# --- ERNIE 4.5 VL: tokens of pictures have experts and a router of their own. Pictures are numbered, and an
# --- answer is behind its name and a space; videos are left out ---------------------------------------------
_ERNIE_TEMPLATE = (
    "{{ bos_token }}"
    "{% set seen = namespace(pictures=0) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'User: ' }}{% elif message.role == 'assistant' %}{{ 'Assistant: ' }}"
    "{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}"
    "{% set seen.pictures = seen.pictures + 1 %}"
    "{{ 'Picture ' ~ seen.pictures ~ ':<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ 'Assistant: ' + ('<think></think>' if enable_thinking is false else '') }}"
    "{% endif %}"
)


def _ernie_config(ids: Ids, text: dict) -> PretrainedConfig:
    """One layer with experts and one without; published, these are the other way round. What experts for
    pictures make in the last layer is read by nothing, so that there they would never learn."""
    return Ernie4_5_VLMoeConfig(
        vision_config={"hidden_size": 48, "intermediate_size": 96, "depth": 2, "num_heads": 4},
        text_config={
            **text,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [32, 24],
            "mlp_layer_types": ["sparse", "dense"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [3, 3, 2]},
        },
        image_token_id=ids["<|IMAGE_PLACEHOLDER|>"],
        image_start_token_id=ids["<|IMAGE_START|>"],
        image_end_token_id=ids["<|IMAGE_END|>"],
        video_token_id=ids["<|VIDEO_PLACEHOLDER|>"],
        video_start_token_id=ids["<|VIDEO_START|>"],
        video_end_token_id=ids["<|VIDEO_END|>"],
        tie_word_embeddings=True,
    )


def _ernie_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Between 4 and 9 tokens a picture, of 28 × 28 pixels each."""
    size = {"shortest_edge": 4 * 28**2, "longest_edge": 9 * 28**2}
    return Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Ernie4_5_VLMoeVideoProcessor(size=size, draw_on_frames=False),  # that needs a font
        chat_template=template,
    )


ERNIE4_5_VL_MOE = Family(
    pad="<unk>",
    eos="</s>",
    bos="<s>",
    special=(),
    template=_ERNIE_TEMPLATE,
    config=_ernie_config,
    processor=_ernie_processor,
    named={
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    },
    padding_side="left",
)


# --- GLM-4.5V: learned biases balance its experts; its template is that of GLM-4.6V -------------------------
def _glm4v_moe_config(ids: Ids, text: dict) -> PretrainedConfig:
    """As published, the first layer has no experts."""
    sizes = glm_sizes(text)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    sizes["text_config"] |= {**experts, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
    return Glm4vMoeConfig(**sizes, tie_word_embeddings=False, **glm_ids(ids))


GLM4V_MOE = glm_family(
    _glm4v_moe_config,
    glm_processor(Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor),
    str(GLM46V.template),
)


# --- Llama 4: layers see chunks of the context or have no rotary positions; experts keep inputs first, and
# --- each computes every token, though one counts. Pictures become tiles and an overview --------------------
_LLAMA4_TEMPLATE = (
    "{{ bos_token }}"
    "{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}"
    "{% set given = messages[0].content %}{% set turns = messages[1:] %}"
    "{% set given = given if given is string else given[0].text %}"
    "{{ '<|header_start|>system<|header_end|>\\n\\n' + given | trim + '<|eot|>' }}"
    "{% endif %}"
    "{% for turn in turns %}"
    "{{ '<|header_start|>' + turn.role + '<|header_end|>\\n\\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}"
    "{% for part in turn.content %}"
    "{{ '<|image|>' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endif %}"
    "{{ '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"
)


def _llama4_config(ids: Ids, text: dict) -> PretrainedConfig:
    """A dense layer with rotary positions and chunks, and one with experts and neither."""
    experts = {"num_local_experts": 4, "interleave_moe_layer_step": 2}
    widths = {"head_dim": 16, "intermediate_size": 32, "intermediate_size_mlp": 96}
    vision = {**VISION_SIZE, "intermediate_size": 192, "image_size": 32, "patch_size": 8}
    outputs = dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 64)
    return Llama4Config(
        vision_config={**vision, **outputs},
        text_config={**text, **experts, **widths, "no_rope_layers": [1, 0]},
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )


def _llama4_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    return Llama4Processor(
        image_processor=Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4),
        tokenizer=tokenizer,
        patch_size=8,
        chat_template=template,
    )


LLAMA4 = Family(
    pad="<|finetune_right_pad|>",
    eos="<|eot|>",
    bos="<|begin_of_text|>",
    special=(
        "<|end_of_text|>",
        "<|eom|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
        "<|image|>",
        "<|patch|>",
    ),
    template=_LLAMA4_TEMPLATE,
    config=_llama4_config,
    processor=_llama4_processor,
    adds_bos=True,
    padding_side="left",
    also_ends=("<|end_of_text|>", "<|eom|>"),
)
