"""Qwen3.5: most layers of its language model attend linearly (Gated DeltaNet), the others as usual."""

from transformers import PretrainedConfig, Qwen3_5Config, Qwen3VLProcessor, Qwen3VLVideoProcessor

from tests.support.tiny.family import Ids
from tests.support.tiny.qwen import qwen_family, qwen_ids, qwen_processor

# --- ChatML without a system prompt of its own; texts are stripped. Answers to the last question begin with
# --- what was thought, be it nothing. As of the small models (0.8B, 2B), which think only where asked to; the
# --- larger ones think unless asked not to.
QWEN3_5_TEMPLATE = (
    "{% macro content_of(message) %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% elif message.role == 'system' %}{{ raise_exception('a system turn may hold no pictures') }}"
    "{% else %}{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endmacro %}"
    "{% set last = namespace(question=none) %}"
    "{% for message in messages if message.role == 'user' %}"
    "{% set last.question = message %}"
    "{% endfor %}"
    "{% if last.question is none %}{{ raise_exception('a chat needs a question') }}{% endif %}"
    "{% set seen = namespace(last_question=false) %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system turn must come first') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and seen.last_question %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ content_of(message) | trim + '<|im_end|>\n' }}"
    "{% if message is sameas last.question %}{% set seen.last_question = true %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n' + ('' if enable_thinking is true else '\n</think>\n\n') }}"
    "{% endif %}"
)


def qwen3_5_text(text: dict) -> dict:
    """A linear layer and one of full attention, which rotates a half of each head; published is a fourth."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    }
    return {
        **text,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": rope,
    }


def qwen3_5_config(ids: Ids, text: dict) -> PretrainedConfig:
    """Qwen3-VL's tower before the language model."""
    return Qwen3_5Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 16,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 36,
        },
        text_config=qwen3_5_text(text),
        tie_word_embeddings=True,
        **qwen_ids(ids),
    )


QWEN3_5 = qwen_family(
    qwen3_5_config, qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor, 32), QWEN3_5_TEMPLATE
)
