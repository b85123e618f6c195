"""IBM's Granite Vision 4 and Granite Docling. Features of several layers enter the language model."""

from typing import Any

from transformers import (
    Granite4VisionConfig,
    Granite4VisionProcessor,
    GraniteDoclingConfig,
    GraniteDoclingImageProcessor,
    GraniteDoclingProcessor,
    LlavaNextImageProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start_of_role|>' + message.role + '<|end_of_role|>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{% endif %}"
    "{{ '<|end_of_text|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
_MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}
_SIDE, _PATCH = 32, 8


def _family(config: Any, processor: Any, *special: str) -> Family:
    return Family(
        pad="<|pad|>",
        eos="<|end_of_text|>",
        bos="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>", "<image>", *special),
        template=_TEMPLATE,
        config=config,
        processor=processor,
        padding_side="left",
    )


# --- Granite Vision 4: LLaVA-NeXT's tiles; each layer of the language model gets features of its own
_PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def _granite4_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Granite4VisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION_SIZE,
            "hidden_size": 64,
            "image_size": _SIDE,
            "patch_size": _PATCH,
            "vision_use_head": False,
        },
        text_config={**text, **_MULTIPLIERS, "num_hidden_layers": 5, "intermediate_size": 64},
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "max_position_embeddings": 64,
            "use_qformer_text_input": False,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "vocab_size": 8,
        },
        image_token_index=ids["<image>"],
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_vision_layer=-1,
        spatial_target_layers=[1, 2, 3, 4],
        projector_dropout=0.0,
    )


def _granite4_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    size = {"height": _SIDE, "width": _SIDE}
    return Granite4VisionProcessor(
        image_processor=LlavaNextImageProcessor(
            image_grid_pinpoints=_PINPOINTS, size=size, crop_size=size, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=template,
    )


GRANITE4_VISION = _family(_granite4_config, _granite4_processor)


# --- Granite Docling: tiles with their places written before them, and DeepStack
def _granite_docling_config(ids: Ids, text: dict) -> PretrainedConfig:
    return GraniteDoclingConfig(
        vision_config={
            **VISION_SIZE,
            "image_size": _SIDE,
            "patch_size": _PATCH,
            "out_hidden_size": text["hidden_size"],
            "scale_factor": 2,
            "deepstack_visual_indexes": [0],
            "use_fine_route": False,
        },
        text_config={**text, **_MULTIPLIERS},
        image_token_id=ids["<image>"],
        pad_token_id=text["pad_token_id"],
    )


def _granite_docling_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    size = {"height": _SIDE, "width": _SIDE}
    return GraniteDoclingProcessor(
        image_processor=GraniteDoclingImageProcessor(size=size, max_patches=4),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=template,
    )


GRANITE_DOCLING = _family(
    _granite_docling_config,
    _granite_docling_processor,
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
