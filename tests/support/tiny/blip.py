"""Families without a chat template that put the picture in front: Kosmos-2, BLIP-2, InstructBLIP."""

from typing import Any

from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    InstructBlipConfig,
    InstructBlipProcessor,
    Kosmos2Config,
    Kosmos2Processor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.tiny.family import VISION_SIZE, Family, Ids

ONE_PICTURE = ("kosmos-2", "blip-2", "instructblip")
"""They take exactly one picture a sample, in its first question."""
PICTURE_TOKENS = 4


# --- Kosmos-2: <s> and the picture are written in front, and white space is taken from both ends of a text
def _kosmos2_config(ids: Ids, text: dict) -> PretrainedConfig:
    return Kosmos2Config(
        vision_config={**VISION_SIZE, "image_size": 28, "patch_size": 14},
        text_config={
            "embed_dim": text["hidden_size"],
            "layers": text["num_hidden_layers"],
            "ffn_dim": text["intermediate_size"],
            "attention_heads": text["num_attention_heads"],
            "dropout": 0.0,
            "attention_dropout": 0.0,
            **{name: text[name] for name in _TEXT_NAMES},
        },
        latent_query_num=64,
    )


_TEXT_NAMES = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


def _kosmos2_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    """It numbers the tokens of the picture from the unknown token on, whatever words have those numbers."""
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer.unk_token = "<unk>"
    return Kosmos2Processor(images, tokenizer, num_patch_index_tokens=64)


KOSMOS2 = Family(
    pad="<pad>",
    eos="</s>",
    bos="<s>",
    special=("<unk>",),
    template=None,
    config=_kosmos2_config,
    processor=_kosmos2_processor,
)


# --- BLIP-2 around OPT: the tokens of the picture come first, then </s>, which begins and ends every text
def _blip2_config(ids: Ids, text: dict) -> dict[str, Any]:
    return {
        "vision_config": {**VISION_SIZE, "image_size": 28, "patch_size": 14, "initializer_range": 0.02},
        "qformer_config": {
            "vocab_size": 1000,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "text_config": {
            "model_type": "opt",
            "ffn_dim": text["intermediate_size"],
            "word_embed_proj_dim": text["hidden_size"],
            "dropout": 0.0,
            **{name: text[name] for name in (*_TEXT_NAMES, *_OPT_NAMES)},
        },
        "num_query_tokens": PICTURE_TOKENS,
        "image_token_index": ids["<image>"],
    }


_OPT_NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def _blip_images() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": 28, "width": 28})


BLIP2 = Family(
    pad="<pad>",
    eos="</s>",
    bos="</s>",
    special=(),
    template=None,
    config=lambda ids, text: Blip2Config(**_blip2_config(ids, text)),
    processor=lambda tokenizer, template: Blip2Processor(
        _blip_images(), tokenizer, num_query_tokens=PICTURE_TOKENS
    ),
    adds_bos=True,
)


# --- InstructBLIP: as BLIP-2, but what its Q-Former sees in a picture depends on the question
def _instructblip_config(ids: Ids, text: dict) -> PretrainedConfig:
    # Vicuna, a Llama, is the decoder of those that can be trained.
    llama = {"model_type": "llama", **text}
    return InstructBlipConfig(**{**_blip2_config(ids, text), "text_config": llama})


def _instructblip_processor(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ProcessorMixin:
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    questions = BertTokenizer(vocab={word: place for place, word in enumerate(words)}, model_max_length=512)
    return InstructBlipProcessor(_blip_images(), tokenizer, questions, num_query_tokens=PICTURE_TOKENS)


INSTRUCTBLIP = Family(
    pad="<pad>",
    eos="</s>",
    bos="<s>",
    special=(),
    template=None,
    config=_instructblip_config,
    processor=_instructblip_processor,
    adds_bos=True,
)
