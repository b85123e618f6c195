"""What a tiny family is made of, and its tokenizer."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

CONTEXT = 512
"""Positions of every tiny model."""
TEXT_SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
VISION_SIZE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

Ids = Mapping[str, int]


class Family(NamedTuple):
    """One row of the table.

    Args:
        pad: Padding token.
        eos: The tokenizer's end token; generation stops at it.
        bos: Begin token; None where the family has none.
        special: Further special tokens.
        template: Chat template; None where the published processor has none.
        config: Makes the configuration from token ids and the text settings that all families share.
        processor: Makes the processor from a tokenizer and the chat template.
        named: Special tokens that the processor asks the tokenizer for by name, such as `image_token`.
        adds_bos: The tokenizer puts `bos` in front (otherwise the template may write it).
        padding_side: As in the published tokenizer.
        also_ends: Tokens besides `eos` that stop generation.
        video: Whether it takes videos.
    """

    pad: str
    eos: str
    bos: str | None
    special: tuple[str, ...]
    template: str | None
    config: Callable[[Ids, dict], PretrainedConfig]
    processor: Callable[[PreTrainedTokenizerFast, str | None], ProcessorMixin]
    named: Mapping[str, str] = {}
    adds_bos: bool = False
    padding_side: str = "right"
    also_ends: tuple[str, ...] = ()
    video: bool = False


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


def make_tokenizer(row: Family) -> PreTrainedTokenizerFast:
    """The tokenizer of a family: the same words for all, its own special tokens."""
    tokenizer = Tokenizer.from_str(_bpe())
    special = [token for token in (row.pad, row.bos, row.eos, *row.special, *row.named.values()) if token]
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
        extra_special_tokens=dict(row.named) or list(row.special),
        model_max_length=CONTEXT,
        padding_side=row.padding_side,
        clean_up_tokenization_spaces=False,
    )
