"""Tokens as they are shown."""

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_vlm.kinds import Kind

CONTEXT = 4
"""Tokens in front that are decoded too: what a token spells may depend on those before it."""


class Piece(NamedTuple):
    """Tokens shown as one: mostly a single token; a run of picture tokens; or tokens that only together spell
    a character.

    Args:
        ids: The tokens.
        text: What they spell; for pictures and padding, how many they are.
        kind: Of all of them.
        weight: Of each of them in the loss.
    """

    ids: list[int]
    text: str
    kind: Kind
    weight: float


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Tensor, kinds: Tensor, weights: Tensor) -> list[Piece]:
    """Tokens as they are shown. The texts of the pieces joined are the text of the tokens.

    Args:
        tokenizer: Theirs.
        ids: Tensor of shape [length], int64.
        kinds: Tensor of shape [length], int8.
        weights: Tensor of shape [length], float32.
    """
    tokens, result = ids.tolist(), []

    def text(start: int, stop: int) -> str:
        return str(tokenizer.decode(tokens[start:stop], clean_up_tokenization_spaces=False))

    marks = list(zip(kinds.tolist(), weights.tolist(), strict=True))
    for (number, weight), group in groupby(range(len(tokens)), key=marks.__getitem__):
        run, kind = list(group), Kind(number)
        if kind in (Kind.IMAGE, Kind.PAD):
            shown = f"{kind.name.lower()} ×{len(run)}"
            result.append(Piece([tokens[place] for place in run], shown, kind, weight))
            continue
        start = run[0]
        for place in run:
            before = max(0, start - CONTEXT)
            new = text(before, place + 1)[len(text(before, start)) :]
            if new.endswith("\ufffd") and place != run[-1]:  # part of a character
                continue
            result.append(Piece(tokens[start : place + 1], new, kind, weight))
            start = place + 1
    return result


def seen(text: str) -> Iterator[tuple[str, str]]:
    """Each character, and what shows it where it can't be seen or would do something else than be seen.

    >>> "".join(mark for _, mark in seen("a b\\n\\x1b"))
    'a·b↵⟨U+001B⟩'
    """
    marks = {" ": "·", "\n": "↵", "\t": "⇥"}
    for one in text:
        # Joiners have to stay, or emoji and some scripts would fall apart.
        hidden = unicodedata.category(one) in ("Cc", "Cf", "Zs", "Zl", "Zp") and one not in "\u200c\u200d"
        yield one, marks.get(one, f"⟨U+{ord(one):04X}⟩" if hidden else one)
