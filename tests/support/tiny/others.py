"""InternVL, Mistral's (Pixtral, Mistral 3), and Mllama (Llama 3.2 Vision)."""

from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    Mistral3Config,
    MllamaConfig,
    MllamaImageProcessor,
    MllamaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

# --- InternVL 3: ChatML without a system prompt of its own; a new line behind each picture and video -------
_INTERNVL_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{{ part.text if part.type == 'text' else '<IMG_CONTEXT>\n' if part.type == 'image' else '<video>\n' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _internvl_config(language: dict[str, Any]) -> Any:
    def make(ids: Ids, text: dict) -> PretrainedConfig:
        return InternVLConfig(
            vision_config={**VISION_SIZE, "image_size": [32, 32], "patch_size": [8, 8]},
            text_config={**text, **language},
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4,
            tie_word_embeddings=False,
        )

    return make


def _internvl_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """Pictures become at most 4 tiles and an overview, of 4 tokens each."""
    size = {"height": 32, "width": 32}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )


INTERNVL = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>",),
    template=_INTERNVL_TEMPLATE,
    config=_internvl_config({"model_type": "qwen2"}),
    processor=_internvl_processor,
    named={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    padding_side="left",
    video=True,
)
INTERNVL3_5 = INTERNVL._replace(config=_internvl_config({"model_type": "qwen3", "head_dim": 16}))
"""InternVL 3.5 has the language model of Qwen3."""


# --- Mistral Small 3.1: <s>, always a system prompt, questions between [INST] and [/INST], answers with </s>,
# --- no generation prompt
_MISTRAL3_TEMPLATE = (
    "{{ bos_token + '[SYSTEM_PROMPT]' }}"
    "{% if messages[0].role == 'system' %}"
    "{{ messages[0].content[0].text }}{% set turns = messages[1:] %}"
    "{% else %}{{ 'You are a helpful assistant.' }}{% set turns = messages %}{% endif %}"
    "{{ '[/SYSTEM_PROMPT]' }}"
    "{% for turn in turns %}"
    "{% if turn.role == 'user' %}"
    "{{ '[INST]' }}"
    "{% for part in turn.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '[/INST]' }}"
    "{% elif turn.role == 'assistant' %}{{ turn.content[0].text + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant may take turns') }}{% endif %}"
    "{% endfor %}"
)


def _mistral3_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Mistral3Config(
        vision_config={"model_type": "pixtral", **VISION_SIZE, "image_size": 56, "patch_size": 7},
        text_config={"model_type": "mistral", "head_dim": 16, "sliding_window": None, **text},
        image_token_index=ids["[IMG]"],
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _mistral_family(template: str, config: Any, merge: int, *special: str) -> Family:
    """At most 4×4 tokens a picture, of 14×14 pixels each, and one more at the end of each row."""

    def processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
        return PixtralProcessor(
            image_processor=PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14),
            tokenizer=tokenizer,
            patch_size=14 // merge,
            spatial_merge_size=merge,
            chat_template=template,
        )

    return Family(
        pad="<pad>",
        eos="</s>",
        bos="<s>",
        special=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", *special),
        template=template,
        config=config,
        processor=processor,
        adds_bos=True,
        padding_side="left",
    )


MISTRAL3 = _mistral_family(_MISTRAL3_TEMPLATE, _mistral3_config, 2, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")


# --- Pixtral (a LLaVA): as Mistral 3, but without a system prompt of its own. A system turn is written only
# --- into a question that ends the chat, so none can be trained with, and only if it is a text, not parts
_PIXTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% set given = messages[0].role == 'system' %}"
    "{% for turn in (messages[1:] if given else messages) %}"
    "{% set asks = turn.role == 'user' %}"
    "{% if asks != (loop.index0 % 2 == 0) or not asks and turn.role != 'assistant' %}"
    "{{ raise_exception('user and assistant must take turns') }}"
    "{% endif %}"
    "{% if asks %}"
    "{{ '[INST]' + messages[0].content + '\n\n' if given and loop.last else '[INST]' }}"
    "{% endif %}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}"
    "{% for part in turn.content %}{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}"
    "{% endif %}"
    "{{ '[/INST]' if asks else eos_token }}"
    "{% endfor %}"
)


def _pixtral_config(ids: Ids, text: dict) -> PretrainedConfig:
    return LlavaConfig(
        vision_config={"model_type": "pixtral", **VISION_SIZE, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "mistral", "head_dim": 16, "sliding_window": None, **text},
        image_token_index=ids["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


PIXTRAL = _mistral_family(_PIXTRAL_TEMPLATE, _pixtral_config, 1)


# --- Llama 3.2 Vision: a header before each turn, <|eot_id|> behind; a system turn with dates, but not where
# --- there are pictures and none was given
_MLLAMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% set seen = namespace(image=false) %}"
    "{% for message in messages %}{% for part in message.content if part.type == 'image' %}"
    "{% set seen.image = true %}"
    "{% endfor %}{% endfor %}"
    "{% set given = messages[0].role == 'system' %}"
    "{% if given or not seen.image %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}"
    "{% if given %}{{ messages[0].content[0].text | trim }}{% endif %}"
    "{{ '<|eot_id|>' }}"
    "{% endif %}"
    "{% for message in (messages[1:] if given else messages) %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{% for part in message.content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def _mllama_config(ids: Ids, text: dict) -> PretrainedConfig:
    """Pictures enter by cross-attention, in the second of three layers.

    As published, the head doesn't know the picture's token, which has the highest id.
    """
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }
    size = text["vocab_size"] - 1
    assert ids["<|image|>"] == size
    return MllamaConfig(
        vision_config=vision,
        text_config={
            **text,
            "vocab_size": size,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        image_token_index=ids["<|image|>"],
    )


def _mllama_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    images = MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4)
    return MllamaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)


MLLAMA = Family(
    pad="<|finetune_right_pad_id|>",
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    special=(
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|image|>",
    ),
    template=_MLLAMA_TEMPLATE,
    config=_mllama_config,
    processor=_mllama_processor,
    adds_bos=True,
    also_ends=("<|end_of_text|>", "<|eom_id|>"),
)
