"""What a model wrote, as text."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.special_tokens import any_of


def decode(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, kept: Sequence[Collection[str]] = ()
) -> list[str]:
    """Texts without special tokens.

    Args:
        tokenizer: Of the model.
        ids: Tensor of shape [answers, length], int64.
        kept: Of each answer, the special tokens that stay.
    """
    special = set(tokenizer.all_special_tokens)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for row, tokens in enumerate(kept):
        if not special.isdisjoint(tokens):
            whole: Any = tokenizer.decode(
                ids[row], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            texts[row] = any_of(special.difference(tokens)).sub("", whole)
    return texts
