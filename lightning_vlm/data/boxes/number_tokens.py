"""Which tokens a number may be made of: digits, several digits at once, or a bin."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

BINS = 0
"""What stands for the number of digits of tokens that are bins, such as `<loc_125>`."""
_MOST_DIGITS = 4
_BIN = re.compile(r"<loc_?([0-9]+)>")


class NumberTokens(NamedTuple):
    """All tokens of one number of digits, or all bins.

    Args:
        ids: Tensor of shape [tokens], int64, by value.
        values: Tensor of shape [tokens], float32: the number that each one writes.
    """

    ids: Tensor
    values: Tensor


def number_tokens(tokenizer: PreTrainedTokenizerBase, bins: Sequence[str] = ()) -> dict[int, NumberTokens]:
    """The tokens that a number may be made of, by how many digits they have; 0 stands for bins.

    Only tokens that are digits and nothing else are numbers: one with a space before them is another token.

    Args:
        tokenizer: Of a model.
        bins: The tokens of the bins, such as `BoxCodec.tokens`; without any, all `<loc...>` of the tokenizer.

    Returns:
        Nothing for a number of digits that no token has. Of more digits there may be few of all numbers.
    """
    ids_by_text = tokenizer.get_vocab()
    found: dict[int, list[tuple[float, int]]] = {}
    for text, number in ids_by_text.items():
        if len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit():
            found.setdefault(len(text), []).append((float(text), number))
    for text in bins or ids_by_text:
        match = _BIN.fullmatch(text)
        if match and text in ids_by_text:
            found.setdefault(BINS, []).append((float(match[1]), ids_by_text[text]))
    return {digits: _sorted(pairs) for digits, pairs in sorted(found.items())}


def _sorted(pairs: list[tuple[float, int]]) -> NumberTokens:
    values, ids = zip(*sorted(pairs), strict=True)
    return NumberTokens(torch.tensor(ids, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))
