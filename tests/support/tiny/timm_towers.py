"""Families whose tower comes from timm."""

from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nProcessor,
    LlavaProcessor,
    PerceptionLMConfig,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessor,
)

from tests.support.tiny.family import Family, Ids
from tests.support.tiny.gemma import GEMMA3_TEMPLATE

# --- Perception LM: Llama 3's turns, always a system turn, pictures before the words; tiles and an overview
_PERCEPTION_SYSTEM = "You are a helpful language and vision assistant."
_PERCEPTION_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}"
    "{% set given = messages[0].content %}{% set turns = messages[1:] %}"
    "{% set given = given | trim %}"
    f"{{% else %}}{{% set given = '{_PERCEPTION_SYSTEM}' %}}{{% set turns = messages %}}{{% endif %}}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + given + '<|eot_id|>' }}"
    "{% for turn in turns %}"
    "{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' }}"
    "{% for part in turn.content if part.type == 'image' %}<|image|>{% endfor %}"
    "{% for part in turn.content if part.type == 'video' %}<|video|>{% endfor %}"
    "{% for part in turn.content if part.type == 'text' %}{{ part.text | trim }}{% endfor %}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_TILE, _PATCH = 32, 8


def _perception_lm_config(ids: Ids, text: dict) -> PretrainedConfig:
    return PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "hidden_size": 48,
            "num_features": 48,
            "model_args": {
                "embed_dim": 48,
                "depth": 2,
                "num_heads": 4,
                "mlp_ratio": 2.0,
                "img_size": [_TILE, _TILE],
                "patch_size": _PATCH,
                "ref_feat_shape": [_TILE // _PATCH, _TILE // _PATCH],
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
            },
        },
        text_config={"model_type": "llama", **text},
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        tie_word_embeddings=True,
    )


def _perception_lm_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    size = {"height": _TILE, "width": _TILE}
    return PerceptionLMProcessor(
        video_processor=PerceptionLMVideoProcessor(size=size),
        image_processor=PerceptionLMImageProcessor(tile_size=_TILE, max_num_tiles=4, size=size),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        pooling_ratio=2,
        chat_template=template,
    )


PERCEPTION_LM = Family(
    pad="<|end_of_text|>",
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    special=("<|start_header_id|>", "<|end_header_id|>"),
    template=_PERCEPTION_TEMPLATE,
    config=_perception_lm_config,
    processor=_perception_lm_processor,
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
    adds_bos=True,
    padding_side="left",
    also_ends=("<|end_of_text|>",),
)


# --- FastVLM: ChatML with a system prompt of its own; images, then each text on a new line
_FAST_VLM_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ '\n' + part.text }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _fast_vlm_config(ids: Ids, text: dict) -> PretrainedConfig:
    return FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 128,
            "model_args": {
                "inference_mode": True,
                "layer_scale_init_value": 0.5,
                "layers": [1, 1, 1, 1, 1],
                "embed_dims": [4, 8, 16, 32, 64],
                "mlp_ratios": [2, 2, 2, 2, 2],
            },
        },
        text_config={"model_type": "qwen2", **text},
        image_token_index=ids["<image>"],
        image_seq_length=4,
    )


def _fast_vlm_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """4 tokens a picture, of 64×64 pixels each."""
    side = {"height": 128, "width": 128}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 128}, crop_size=side, image_mean=[0.0] * 3, image_std=[1.0] * 3
        ),
        tokenizer=tokenizer,
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


FAST_VLM = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>", "<image>"),
    template=_FAST_VLM_TEMPLATE,
    config=_fast_vlm_config,
    processor=_fast_vlm_processor,
    padding_side="left",
    also_ends=("<|endoftext|>",),
)


# --- Gemma 3n: Gemma 3's chats; several streams of hidden states, embeddings for each layer, shared keys.
# --- Words for pictures and for sound have tables of their own, behind those of text
_GEMMA3N_NAMED = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
}


def _gemma3n_config(ids: Ids, text: dict) -> PretrainedConfig:
    """The last 6 tokens of the tokenizer are those of pictures and of sound."""
    size = text["vocab_size"]
    return Gemma3nConfig(
        vision_config={
            "architecture": "convnext_atto",
            "hidden_size": 48,
            "model_args": {
                "depths": [1, 1, 1, 1],
                "dims": [16, 16, 32, 48],
                "conv_mlp": False,
                "head_norm_first": True,
                "ls_init_value": 0.5,
            },
            "vocab_size": 3,
            "vocab_offset": size - 6,
        },
        audio_config={
            "vocab_size": 3,
            "vocab_offset": size - 3,
            "hidden_size": 16,
            "input_feat_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [4, 2],
        },
        text_config={
            **text,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "num_kv_shared_layers": 1,
            "vocab_size_per_layer_input": size - 6,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        },
        vision_soft_tokens_per_image=4,
        audio_soft_tokens_per_image=4,
        image_token_id=ids["<image_soft_token>"],
        boi_token_id=ids["<start_of_image>"],
        eoi_token_id=ids["<end_of_image>"],
        audio_token_id=ids["<audio_soft_token>"],
        boa_token_id=ids["<start_of_audio>"],
        eoa_token_id=ids["<end_of_audio>"],
    )


def _gemma3n_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(feature_size=16),
        image_processor=SiglipImageProcessor(size={"height": 64, "width": 64}, do_normalize=False),
        tokenizer=tokenizer,
        audio_seq_length=4,
        image_seq_length=4,
        chat_template=template,
    )


GEMMA3N = Family(
    pad="<pad>",
    eos="<eos>",
    bos="<bos>",
    special=("<start_of_turn>", "<end_of_turn>"),
    template=GEMMA3_TEMPLATE.replace("<start_of_image>", "<image_soft_token>"),
    config=_gemma3n_config,
    processor=_gemma3n_processor,
    named=_GEMMA3N_NAMED,
    adds_bos=True,
    padding_side="left",
    also_ends=("<end_of_turn>",),
)
