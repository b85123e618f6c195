"""Tokens as both views show them."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_vlm.kinds import Kind
from lightning_vlm.terminal import code_point, visible

CONTEXT = 4
"""How many preceding tokens are decoded with a token, because its text may depend on them."""
MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}


class Piece(NamedTuple):
    """Tokens that are shown together: mostly a single token, or a run of picture tokens, or tokens that only
    together spell a character.

    Args:
        ids: The tokens.
        text: What they spell; for pictures, videos and padding, how many they are.
        kind: The kind of all of them.
        weight: The weight of each of them in the loss.
        gain: By how many nats the picture lowers their loss together; None where that wasn't asked for.
    """

    ids: list[int]
    text: str
    kind: Kind
    weight: float
    gain: float | None = None


def pieces(
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    kinds: Tensor,
    weights: Tensor,
    videos: Sequence[tuple[int, int]] = (),
    gains: Tensor | None = None,
) -> list[Piece]:
    """The tokens of a sample as they are shown. The texts of the pieces joined are the text of the tokens.

    Args:
        tokenizer: The tokenizer that made them.
        ids: Tensor of shape [length], int64.
        kinds: Tensor of shape [length], int8.
        weights: Tensor of shape [length], float32.
        videos: From which token on, and up to which, each video goes.
        gains: Tensor of shape [length], float32: what the picture does for each; NaN where that is unknown.
    """
    tokens = ids.tolist()
    video_of = [0] * len(tokens)
    for number, (start, stop) in enumerate(videos, 1):
        video_of[start:stop] = [number] * (stop - start)
    marks = list(zip(kinds.tolist(), weights.tolist(), video_of, strict=True))
    result: list[Piece] = []
    for (number, weight, video), group in groupby(range(len(tokens)), key=marks.__getitem__):
        run, kind = list(group), Kind(number)
        start, stop = run[0], run[-1] + 1
        if kind in (Kind.IMAGE, Kind.PAD):
            name = "video" if video else kind.name.lower()
            count = f"{name} ×{len(run)}"
            result.append(Piece(tokens[start:stop], count, kind, weight))
        else:
            for span, text in _characters(tokenizer, tokens, start, stop):
                gain = None if gains is None else float(gains[span].sum())
                known = gain if gain is not None and math.isfinite(gain) else None
                result.append(Piece(tokens[span], text, kind, weight, known))
    return result


def _characters(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], start: int, stop: int
) -> Iterator[tuple[slice, str]]:
    """The shortest spans from `start` to `stop` that spell whole characters, each with its text."""

    def decode(begin: int, end: int) -> str:
        return str(tokenizer.decode(tokens[begin:end], clean_up_tokenization_spaces=False))

    for end in range(start + 1, stop + 1):
        context = max(0, start - CONTEXT)
        text = decode(context, end)[len(decode(context, start)) :]
        is_part_of_character = text.endswith("\ufffd")
        if not is_part_of_character or end == stop:
            yield slice(start, end), text
            start = end


def visible_characters(text: str) -> Iterator[tuple[str, str]]:
    """Each character of a text, and what to show for it: a mark where the character itself is invisible.

    >>> "".join(mark for _, mark in visible_characters("a b\\n\\x1b"))
    'a·b↵⟨U+001B⟩'
    """
    for character in text:
        if character in MARKS:
            yield character, MARKS[character]
        elif unicodedata.category(character) == "Zs":
            yield character, code_point(character)
        else:
            yield character, visible(character)
