"""Tiny real models of the published families, with random weights, for tests.

Everything but the size is real: classes, configuration, processor and chat template (in the shape of the
published ones, in our own words). Adding a family is adding a row to `FAMILIES`.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from lightning_vlm.errors import UserError

CONTEXT = 512
"""Positions of every tiny model."""
TEXT_SIZE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}

Ids = Mapping[str, int]


class Family(NamedTuple):
    """One row of the table.

    Args:
        pad: Padding token.
        eos: The tokenizer's end token; generation stops at it.
        bos: Begin token; None where the family has none.
        special: Further special tokens.
        template: Chat template.
        config: Makes the configuration from token ids and the text settings that all families share.
        processor: Makes the processor from a tokenizer and the chat template.
        adds_bos: The tokenizer puts `bos` in front (otherwise the template writes it, or nobody).
        padding_side: As in the published tokenizer.
        also_ends: Tokens besides `eos` that stop generation.
    """

    pad: str
    eos: str
    bos: str | None
    special: tuple[str, ...]
    template: str
    config: Callable[[Ids, dict], PretrainedConfig]
    processor: Callable[[PreTrainedTokenizerFast, str], ProcessorMixin]
    adds_bos: bool = False
    padding_side: str = "right"
    also_ends: tuple[str, ...] = ()


def build(family: str, directory: Path, seed: int = 0) -> Path:
    """Save a tiny model of a family: weights, configuration, tokenizer, processor, template.

    Args:
        family: A key of `FAMILIES`.
        directory: Where to save it; made if missing.
        seed: Chooses the random weights.
    Returns:
        The directory, loadable by `AutoProcessor` and `AutoModelForImageTextToText`.
    Raises:
        UserError: There is no such family.

    >>> import tempfile
    >>> folder = build("llava", Path(tempfile.mkdtemp()))
    >>> AutoModelForImageTextToText.from_pretrained(folder).num_parameters() < 500_000
    True
    """
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=3, cutoff=0.4) or sorted(FAMILIES)
        raise UserError(f"found no tiny model {family!r}; expected one of: {', '.join(near)}")
    row = FAMILIES[family]
    tokenizer = _tokenizer(row)
    ids = tokenizer.get_vocab()
    text = {
        **TEXT_SIZE,
        "vocab_size": len(tokenizer),
        "pad_token_id": ids[row.pad],
        "eos_token_id": ids[row.eos],
        "bos_token_id": ids[row.bos] if row.bos else None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(row.config(ids, text), dtype=torch.float32)
    model.generation_config = GenerationConfig(
        pad_token_id=ids[row.pad],
        bos_token_id=text["bos_token_id"],
        eos_token_id=[ids[token] for token in (row.eos, *row.also_ends)],
    )
    model.save_pretrained(directory)
    row.processor(tokenizer, row.template).save_pretrained(directory)
    return Path(directory)


_SENTENCES = (
    "USER: What is in the picture? ASSISTANT: The picture shows a red circle to the left of a blue square.",
    "user\nHow many green triangles are there? assistant\nThere are two green triangles in the image.",
    "system\nYou are a helpful assistant. User: Describe this image. Assistant: It is a small yellow star.",
    "Is the circle above the square? Yes, it is. No, it is below. What colour is it? What is written here?",
)


@cache
def _bpe() -> str:
    """A byte-level BPE of a few sentences, as JSON; bytes cover every other text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=384, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer.to_str()


def _tokenizer(row: Family) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(_bpe())
    special = [token for token in (row.pad, row.bos, row.eos, *row.special) if token]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(special)])
    if row.adds_bos and row.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{row.bos} $A", special_tokens=[(row.bos, tokenizer.token_to_id(row.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=row.pad,
        bos_token=row.bos,
        eos_token=row.eos,
        additional_special_tokens=list(row.special),
        model_max_length=CONTEXT,
        padding_side=row.padding_side,
        clean_up_tokenization_spaces=False,
    )


# --- LLaVA 1.5: images first, roles in capitals, nothing after an answer but a space -----------------------
_LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'system' %}{{ message.role | upper }}: {% endif %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ part.text + ' ' }}{% endgeneration %}"
    "{% else %}{{ part.text + ' ' }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _llava_config(ids: Ids, text: dict) -> LlavaConfig:
    """As published, features leave the tower one layer early: its last layer never gets a gradient."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=96,
            projection_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=42,
            patch_size=14,
        ),
        text_config=LlamaConfig(**text),
        image_token_index=ids["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


# --- SmolVLM: one start token for the whole chat; a space after the colon only before text -----------------
_SMOLVLM_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{{ message.role | capitalize + (':' if message.content[0].type == 'image' else ': ') }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _smolvlm_config(ids: Ids, text: dict) -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={"model_type": "llama", **text},
        image_token_id=ids["<image>"],
        scale_factor=2,
    )


def _smolvlm_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> SmolVLMProcessor:
    """Images become at most 2×2 tiles and an overview, of 4 tokens each."""
    sizes: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=template,
    )


# --- Qwen2.5-VL: ChatML with a system prompt of its own where none is given --------------------------------
_QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _qwen2_5_vl_config(ids: Ids, text: dict) -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": text["hidden_size"],
        },
        text_config={**text, "rope_parameters": rope},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _qwen2_5_vl_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> Qwen2_5_VLProcessor:
    """Between 4 and 9 tokens an image, 28×28 pixels each."""
    pixels: dict[str, Any] = {"min_pixels": 56 * 56, "max_pixels": 84 * 84}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=template,
    )


FAMILIES: dict[str, Family] = {
    "llava": Family(
        pad="<pad>",
        eos="</s>",
        bos="<s>",
        special=("<image>",),
        template=_LLAVA_TEMPLATE,
        config=_llava_config,
        processor=_llava_processor,
        adds_bos=True,
        padding_side="left",
    ),
    "smolvlm": Family(
        pad="<|im_end|>",
        eos="<end_of_utterance>",
        bos="<|im_start|>",
        special=(
            "<fake_token_around_image>",
            "<image>",
            "<global-img>",
            *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
        ),
        template=_SMOLVLM_TEMPLATE,
        config=_smolvlm_config,
        processor=_smolvlm_processor,
    ),
    "qwen2_5_vl": Family(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        bos=None,
        special=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        template=_QWEN_TEMPLATE,
        config=_qwen2_5_vl_config,
        processor=_qwen2_5_vl_processor,
        also_ends=("<|endoftext|>",),
    ),
}
"""The families that can be built, by the name of their `model_type`."""
