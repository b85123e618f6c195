"""From stretches of text, whose writers are known, to token ids, each with its kind."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_vlm.kinds import Kind


class Run(NamedTuple):
    """A stretch of text that the template, a picture or a person wrote.

    Args:
        text: The text.
        kinds: A `Kind` for each character.
        answer: Which answer it is part of, from 1 on; 0 is none. No token will hold parts of two.
        words: A person's words.
        plain: Words that spell a special token, and must stay words.
    """

    text: str
    kinds: bytes
    answer: int = 0
    words: bool = False
    plain: bool = False


def one_kind(text: str, kind: Kind, answer: int = 0) -> Run:
    """A run of one kind that no person wrote."""
    return Run(text, bytes([kind]) * len(text), answer)


class Encoded(NamedTuple):
    """What `encode` gives.

    Args:
        inputs: As a tokenizer gives it for a list of one text.
        kinds: Array of shape [length], int8, a `Kind` for each token.
        words: Array of shape [length], bool: where a token is made of a person's words alone.
        spans: Array of shape [length, 2]: from which character to which each token goes.
    """

    inputs: dict[str, Any]
    kinds: np.ndarray
    words: np.ndarray
    spans: np.ndarray


def encode(tokenizer: PreTrainedTokenizerBase, runs: Sequence[Run], options: Mapping[str, Any]) -> Encoded:
    """Tokenize runs as one text.

    It is cut only around plain runs, and where a token would be half answer, half something else.

    Args:
        tokenizer: A fast one.
        runs: The text, in order.
        options: For the tokenizer, such as `add_special_tokens`.
    """
    whole = "".join(run.text for run in runs)
    lengths = [len(run.text) for run in runs]
    # One character more, so that spans may end at the end.
    kinds = np.frombuffer(b"".join(run.kinds for run in runs) + b"\0", np.int8)
    answers = np.append(np.repeat([run.answer for run in runs], lengths), 0)
    words = np.append(np.repeat([run.words for run in runs], lengths), False)
    encoded = tokenizer([whole], return_offsets_mapping=True, **options)
    spans = _spans(encoded.pop("offset_mapping")[0], 0)
    plain: dict[int, int] = {}  # the start of each plain run, and its end
    place = 0
    for run in runs:
        if run.plain:
            plain[place] = place + len(run.text)
        place += len(run.text)
    cuts = _borders(spans, answers)
    if not plain and not cuts:
        return Encoded(dict(encoded), *_of_tokens(spans, kinds, words), spans)
    # What the tokenizer adds by itself in front and behind has no characters.
    (own,) = np.nonzero(spans[:, 0] < spans[:, 1])
    front, back = (own[0], own[-1] + 1) if len(own) else (len(spans), len(spans))
    first = encoded["input_ids"][0]
    cuts |= {0, len(whole), *plain, *plain.values()}
    while True:
        ids: list[int] = []
        parts: list[np.ndarray] = []
        places = sorted(cuts)
        for start, stop in itertools.pairwise(places):
            inside = any(begin <= start and stop <= end for begin, end in plain.items())
            segment = tokenizer(
                whole[start:stop],
                add_special_tokens=False,
                split_special_tokens=inside,
                return_offsets_mapping=True,
            )
            ids += segment["input_ids"]
            parts.append(_spans(segment["offset_mapping"], start))
        spans = np.concatenate(
            [np.zeros((front, 2), np.int64), *parts, np.zeros((len(first) - back, 2), np.int64)]
        )
        more = _borders(spans, answers)
        if not more:
            break
        cuts |= more
    ids = [*first[:front], *ids, *first[back:]]
    inputs = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    return Encoded(inputs, *_of_tokens(spans, kinds, words), spans)


def _spans(offsets: Sequence[tuple[int, int]], start: int) -> np.ndarray:
    """Array of shape [tokens, 2]: from which character to which each token goes.

    Characters that a tokenizer leaves out, such as white space before a word, belong to the token after them.
    """
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    if len(spans):
        before = np.append(0, np.maximum.accumulate(spans[:, 1])[:-1])
        spans[:, 0] = np.minimum(spans[:, 0], before)
    return spans + start


def _borders(spans: np.ndarray, answers: np.ndarray) -> set[int]:
    """Where answers begin or end inside a token."""
    (borders,) = np.nonzero(answers[1:] != answers[:-1])
    borders = borders + 1
    long = spans[spans[:, 1] - spans[:, 0] > 1]
    return {int(one) for one in borders if ((long[:, 0] < one) & (one < long[:, 1])).any()}


def _of_tokens(spans: np.ndarray, kinds: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each token, the highest among its characters; and whether all of them are words."""
    flat = spans.reshape(-1)
    if not len(flat):
        return np.zeros(0, np.int8), np.zeros(0, bool)
    empty = spans[:, 0] == spans[:, 1]
    kinds = np.maximum.reduceat(kinds, flat)[::2].copy()
    kinds[empty] = Kind.SPECIAL
    return kinds, np.minimum.reduceat(words, flat)[::2] & ~empty
