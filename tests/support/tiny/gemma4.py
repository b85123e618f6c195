"""Google's Gemma 4: pictures of any shape, per-layer embeddings, layers that share keys and values, sound."""

from typing import Any

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_PIXELS: dict[str, Any] = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
"""70 is the fewest tokens of a picture that the processor allows; a square one has 64."""
_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set given = messages[0].content %}{% set turns = messages[1:] %}"
    "{{ '<|turn>system\n' + ((given if given is string else given[0].text) | trim) + '<turn|>\n' }}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{{ '<|turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\n' }}"
    "{% if turn.content is string %}{{ turn.content | trim }}{% else %}"
    "{% for part in turn.content %}"
    "{% if part.type == 'text' %}{{ part.text | trim }}"
    "{% else %}{{ '\n\n<|' + part.type + '|>\n\n' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)


def _config(ids: Ids, text: dict, audio: bool, **more: Any) -> PretrainedConfig:
    return Gemma4Config(
        vision_config={
            **VISION_SIZE,
            "num_key_value_heads": 4,
            "head_dim": 12,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 160,
        },
        audio_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [4, 2],
            "output_proj_dims": 16,
        }
        if audio
        else None,
        text_config={
            **text,
            "head_dim": 16,
            "global_head_dim": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 30.0,
            "vocab_size_per_layer_input": text["vocab_size"],
            **more,
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        audio_token_id=ids["<|audio|>"],
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        boa_token_id=ids["<|audio>"],
        eoa_token_index=ids["<audio|>"],
    )


def _processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**_PIXELS),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(**_PIXELS, num_frames=4),
        image_seq_length=70,
        chat_template=template,
    )


def _family(config: Any) -> Family:
    return Family(
        pad="<pad>",
        eos="<eos>",
        bos="<bos>",
        special=("<|turn>", "<turn|>", "<|video|>"),
        template=_TEMPLATE,
        config=config,
        processor=_processor,
        named={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        adds_bos=True,
        padding_side="left",
        also_ends=("<turn|>",),
        video=True,
    )


# --- E2B and E4B: embeddings for each layer, the last layer uses keys and values of an earlier one, and sound
def _e4b_config(ids: Ids, text: dict) -> PretrainedConfig:
    return _config(
        ids,
        text,
        audio=True,
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=1,
        use_double_wide_mlp=True,
    )


GEMMA4 = _family(_e4b_config)


# --- 31B: tokens of a picture see one another in layers with a sliding window; keys are values in the others
def _31b_config(ids: Ids, text: dict) -> PretrainedConfig:
    return _config(
        ids,
        text,
        audio=False,
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )


GEMMA4_31B = _family(_31b_config)
