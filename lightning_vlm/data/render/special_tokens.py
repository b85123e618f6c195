"""The special tokens of a processor, which no text of a conversation may become."""

import re
from typing import NamedTuple

import numpy as np
from transformers import ProcessorMixin

from lightning_vlm.data.render.chat import any_of


class SpecialTokens(NamedTuple):
    """The special tokens of a processor.

    Args:
        pattern: Finds one where a text spells it.
        ids: Array of int64: those that no text may become.
        ends: Those that may end a turn.
        placeholders: Those that may stand for a picture, a video or a sound.
    """

    pattern: re.Pattern[str]
    ids: np.ndarray
    ends: set[str]
    placeholders: set[str]


def special_tokens(processor: ProcessorMixin) -> SpecialTokens:
    """The special tokens of a processor and its tokenizer."""
    tokenizer = processor.tokenizer
    named = [getattr(processor, f"{medium}_token", None) for medium in ("image", "video", "audio")]
    placeholders = {str(token) for token in named if token}
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= {token.content for token in added if token.special} | placeholders
    unknown = str(tokenizer.unk_token)  # which any text may become
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special - {unknown}}
    ids -= {None, tokenizer.unk_token_id}
    # Where one token begins a text and ends it, it ends turns as well.
    begins = {str(tokenizer.bos_token)} - {str(tokenizer.eos_token)}
    return SpecialTokens(
        any_of(special), np.array(sorted(ids), np.int64), special - placeholders - begins, placeholders
    )
