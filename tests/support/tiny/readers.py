"""PaddleOCR-VL and HunYuan-VL, which read documents, VideoLLaMA 3 and EXAONE 4.5: pictures of any size."""

from transformers import (
    Exaone4_5_Config,
    Exaone4_5_Processor,
    HunYuanVLConfig,
    HunYuanVLImageProcessor,
    HunYuanVLProcessor,
    PaddleOCRVLConfig,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

_SIZE = {"shortest_edge": 4 * 28**2, "longest_edge": 9 * 28**2}
"""Between 4 and 9 tokens a picture, of 28 × 28 pixels each."""

# --- PaddleOCR-VL (1.5): roles as words; the pictures of a question before its words; answers end with </s>
_PADDLE_TEMPLATE = (
    "{{ '<|begin_of_sentence|>' }}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'User: ' }}"
    "{% elif message.role == 'assistant' %}{{ 'Assistant:\n' }}{% endif %}"
    "{% for part in message.content if part.type == 'image' and message.role == 'user' %}"
    "{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def _paddle_config(ids: Ids, text: dict) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    return PaddleOCRVLConfig(
        vision_config={**VISION_SIZE, "image_size": 84, "patch_size": 14},
        text_config={**text, "head_dim": 16, "rope_parameters": rope},
        image_token_id=ids["<|IMAGE_PLACEHOLDER|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|IMAGE_START|>"],
        vision_end_token_id=ids["<|IMAGE_END|>"],
        tie_word_embeddings=False,
    )


def _paddle_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return PaddleOCRVLProcessor(
        image_processor=PaddleOCRVLImageProcessor(size=_SIZE), tokenizer=tokenizer, chat_template=template
    )


PADDLEOCR_VL = Family(
    pad="<unk>",
    eos="</s>",
    bos="<s>",
    special=("<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"),
    template=_PADDLE_TEMPLATE,
    config=_paddle_config,
    processor=_paddle_processor,
    named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    padding_side="left",
)

# --- HunYuan-VL (HunyuanOCR): a token behind each turn says whose it was; no generation prompt
_HUNYUAN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}{{ '<image><placeholder></image>' }}{% endif %}"
    "{% endfor %}"
    "{% if message.role == 'system' %}{{ '<end_of_system>' }}"
    "{% elif message.role == 'user' %}{{ '<user>' }}"
    "{% else %}{{ '<assistant>' }}{% endif %}"
    "{% endfor %}"
)
for _short, _published in {
    "<image>": "<｜hy_place▁holder▁no▁100｜>",
    "</image>": "<｜hy_place▁holder▁no▁101｜>",
    "<placeholder>": "<｜hy_place▁holder▁no▁102｜>",
    "<end_of_system>": "<｜hy_place▁holder▁no▁3｜>",
    "<user>": "<｜hy_User｜>",
    "<assistant>": "<｜hy_Assistant｜>",
}.items():
    _HUNYUAN_TEMPLATE = _HUNYUAN_TEMPLATE.replace(_short, _published)


def _hunyuan_config(ids: Ids, text: dict) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2, 2]}
    return HunYuanVLConfig(
        vision_config={
            **VISION_SIZE,
            "hidden_size": 32,
            "patch_size": 14,
            "out_hidden_size": text["hidden_size"],
            "max_image_size": 84,
            "min_image_size": 28,
        },
        text_config={**text, "head_dim": 16, "rope_parameters": rope},
        image_token_id=ids["<｜hy_place▁holder▁no▁102｜>"],
        im_start_id=ids["<｜hy_place▁holder▁no▁100｜>"],
        im_end_id=ids["<｜hy_place▁holder▁no▁101｜>"],
        im_newline_id=ids["<｜hy_place▁holder▁no▁103｜>"],
        tie_word_embeddings=True,
    )


def _hunyuan_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return HunYuanVLProcessor(
        image_processor=HunYuanVLImageProcessor(patch_size=14, size=_SIZE),
        tokenizer=tokenizer,
        chat_template=template,
    )


HUNYUAN_VL = Family(
    pad="<｜hy_▁pad▁｜>",
    eos="<｜hy_Assistant｜>",
    bos="<｜hy_begin▁of▁sentence｜>",
    special=("<｜hy_User｜>", "<｜hy_place▁holder▁no▁3｜>", "<｜hy_place▁holder▁no▁103｜>"),
    template=_HUNYUAN_TEMPLATE,
    config=_hunyuan_config,
    processor=_hunyuan_processor,
    named={
        "image_start_token": "<｜hy_place▁holder▁no▁100｜>",
        "image_end_token": "<｜hy_place▁holder▁no▁101｜>",
        "image_token": "<｜hy_place▁holder▁no▁102｜>",
    },
    padding_side="left",
)

# --- VideoLLaMA 3: ChatML without a system prompt of its own; a new line behind each picture
_VIDEO_LLAMA_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}"
    "{{ part.text if part.type == 'text' else '<|' + part.type + '_pad|>\n' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _video_llama_config(ids: Ids, text: dict) -> PretrainedConfig:
    return VideoLlama3Config(
        vision_config={**VISION_SIZE, "patch_size": 14},
        text_config={"model_type": "qwen2", **text},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=False,
    )


def _video_llama_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """A picture's patches aren't merged; those of a video's frames are, 2 × 2."""
    size = {"shortest_edge": 4 * 14**2, "longest_edge": 9 * 14**2}
    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=VideoLlama3VideoProcessor(size=_SIZE),
        chat_template=template,
    )


VIDEO_LLAMA_3 = Family(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    bos=None,
    special=("<|im_start|>", "<|image_pad|>", "<|video_pad|>"),
    template=_VIDEO_LLAMA_TEMPLATE,
    config=_video_llama_config,
    processor=_video_llama_processor,
    video=True,
    also_ends=("<|endoftext|>",),
)

# --- EXAONE 4.5: a token before and behind each turn. What was thought is left out here
_EXAONE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' }}"
    "{% for part in message.content %}"
    "{{ part.text if part.type == 'text' else '<vision><|' + part.type + '_pad|></vision>' }}"
    "{% endfor %}"
    "{{ '<|endofturn|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _exaone_config(ids: Ids, text: dict) -> PretrainedConfig:
    """The tower groups its keys and sees windows; the language model's first layer has a sliding window."""
    return Exaone4_5_Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "depth": 2,
            "num_heads": 4,
            "num_key_value_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": text["hidden_size"],
        },
        text_config={
            "model_type": "exaone4",
            **text,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=False,
    )


def _exaone_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    return Exaone4_5_Processor(
        image_processor=Qwen2VLImageProcessor(size=_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=_SIZE),
        chat_template=template,
    )


EXAONE4_5 = Family(
    pad="<pad>",
    eos="<|endofturn|>",
    bos="<bos>",
    special=(
        *("<|system|>", "<|user|>", "<|assistant|>"),
        *("<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>"),
    ),
    template=_EXAONE_TEMPLATE,
    config=_exaone_config,
    processor=_exaone_processor,
    video=True,
)
