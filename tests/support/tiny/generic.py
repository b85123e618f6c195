"""A tiny model of a class without a row of its own: a configuration shrunk by the names of its settings."""

import re
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    IMAGE_PROCESSOR_MAPPING,
    PROCESSOR_MAPPING,
    VIDEO_PROCESSOR_MAPPING,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import CONTEXT, Family, Ids

_SETTINGS: tuple[tuple[str, int], ...] = (
    (r"(hidden_size|d_model|out_hidden_size|projection_dim|hidden_dim|embed_dim|text_hidden_size)", 64),
    (r"(\w*intermediate_size|ffn_dim|encoder_ffn_dim|decoder_ffn_dim|moe_intermediate_size)", 96),
    (r"(num_(hidden_)?layers|depth|(encoder|decoder)_layers|n_layers?)", 2),
    (r"(num_attention_heads|num_heads|attention_heads|(encoder|decoder)_attention_heads|n_heads?)", 4),
    (r"num_key_value_heads", 2),
    (r"(head_dim|qk_nope_head_dim|v_head_dim|linear_\w+_head_dim|global_head_dim)", 16),
    (r"(q_lora_rank|kv_lora_rank)", 16),
    (r"qk_rope_head_dim", 8),
    (r"linear_num_(key|value)_heads", 2),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|moe_k|top_k_experts)", 2),
    (r"(n_group|topk_group|first_k_dense_replace|n_shared_experts)", 1),
    (r"(max_position_embeddings|n_positions)", CONTEXT),
    (r"vocab_size_per_layer_input", CONTEXT),
    (r"image_size", 56),
    (r"patch_size", 14),
)
"""What settings are called, as patterns, and the size that each gets."""
_TOKENS = (
    *("video", "audio", "vision_start", "vision_end", "boi", "eoi", "boa", "eoa"),
    *(
        "image_start",
        "image_end",
        "start_image",
        "end_image",
        "context_image",
        "image_break",
        "image_boundary",
    ),
)
_LISTS = ("layer_types", "mlp_layer_types", "indexer_types")
"""Settings that have an entry for each layer."""
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def generic_family(model_type: str) -> Family:
    """A row for a model type, made by rules that no class was asked about: it may not work."""
    return Family(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        bos="<s>",
        special=("<|im_start|>",),
        template=TEMPLATE,
        config=lambda ids, text: shrunk(CONFIG_MAPPING[model_type](), ids, text),
        processor=lambda tokenizer, template: _processor(model_type, tokenizer, template),
        named={"image_token": "<image>", **{f"{name}_token": f"<|{name}|>" for name in _TOKENS}},
    )


def shrunk(config: PretrainedConfig, ids: Ids, text: dict[str, Any]) -> PretrainedConfig:
    """A configuration like another with two layers of a few dozen numbers.

    Args:
        config: With its defaults.
        ids: Of the special tokens.
        text: The settings that the language models of all tiny families share.
    """
    small = _shrink(config.to_dict(), ids)
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig):
            small[name] = _shrink(inner.to_dict(), ids)
            if name == "text_config":
                small[name] |= {key: value for key, value in text.items() if key in small[name]}
    for key in ("pad_token_id", "eos_token_id", "bos_token_id", "vocab_size"):
        if key in small:
            small[key] = text[key]
    return type(config).from_dict(small)


def _shrink(settings: dict[str, Any], ids: Ids) -> dict[str, Any]:
    small = {name: _small(name, value, ids) for name, value in settings.items()}
    small.pop("per_layer_config", None)  # its keys are layers that aren't there any more
    for name in _LISTS:
        if isinstance(small.get(name), list):
            small[name] = small[name][:1] + small[name][-1:]
    return small


def _small(name: str, value: Any, ids: Ids) -> Any:
    token = re.fullmatch(r"(\w+?)_token_(id|index)", name)
    if token and f"<|{token[1]}|>" in ids:
        return ids[f"<|{token[1]}|>"]
    if token and token[1] in ("image", "boi", "eoi"):
        return ids["<image>"]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, size in _SETTINGS:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value


def _processor(model_type: str, tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    config = CONFIG_MAPPING[model_type]
    if config not in PROCESSOR_MAPPING:
        raise NotImplementedError("transformers names no processor for it")
    parts: dict[str, Any] = {"tokenizer": tokenizer}
    for name, mapping in (
        ("image_processor", IMAGE_PROCESSOR_MAPPING),
        ("video_processor", VIDEO_PROCESSOR_MAPPING),
    ):
        if config in mapping:
            parts[name] = _chosen(mapping[config])()
    made = PROCESSOR_MAPPING[config](**parts)
    made.chat_template = made.tokenizer.chat_template = template
    return made


def _chosen(classes: Any) -> Any:
    """The class of a backend that is there, where a mapping has several."""
    if isinstance(classes, dict):
        return classes.get("torchvision") or next(iter(classes.values()))
    if isinstance(classes, tuple):
        return next(one for one in reversed(classes) if one is not None)
    return classes
