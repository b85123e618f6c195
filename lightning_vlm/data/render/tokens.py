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
        weight: How much its turn weighs. What the template writes around an answer has that of the answer.
    """

    text: str
    kinds: bytes
    answer: int = 0
    words: bool = False
    plain: bool = False
    weight: float = 1.0


def one_kind(text: str, kind: Kind, answer: int = 0, weight: float = 1.0) -> Run:
    """A run of one kind that no person wrote."""
    return Run(text, bytes([kind]) * len(text), answer, weight=weight)


class Encoded(NamedTuple):
    """What `encode` gives.

    Args:
        inputs: As a tokenizer gives it for a list of one text.
        kinds: Array of shape [length], int8, a `Kind` for each token.
        words: Array of shape [length], bool: where a token is made of a person's words alone.
        spans: Array of shape [length, 2]: from which character to which each token goes.
        weights: Array of shape [length], float32: the weight of the turn of each token of an answer, 1 for
            others; None where all turns weigh 1.
    """

    inputs: dict[str, Any]
    kinds: np.ndarray
    words: np.ndarray
    spans: np.ndarray
    weights: np.ndarray | None


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
    # One more character, so that a span may end at the end of the text.
    kinds = np.frombuffer(b"".join(run.kinds for run in runs) + b"\0", np.int8)
    answers = np.append(np.repeat([run.answer for run in runs], lengths), 0)
    words = np.append(np.repeat([run.words for run in runs], lengths), False)
    literal = np.append(np.repeat([run.plain for run in runs], lengths), False)
    encoded = tokenizer([whole], return_offsets_mapping=True, **options)
    spans = _spans(encoded.pop("offset_mapping")[0], 0)
    cuts = _borders(spans, answers)
    if not literal.any() and not cuts:
        return Encoded(dict(encoded), *_of_tokens(spans, kinds, words), spans, _weights(spans, runs))
    # The tokens that the tokenizer adds at the beginning and end have no characters.
    (own,) = np.nonzero(spans[:, 0] < spans[:, 1])
    front, back = (own[0], own[-1] + 1) if len(own) else (len(spans), len(spans))
    first = encoded["input_ids"][0]
    ends = list(itertools.accumulate(lengths))
    cuts |= {0, len(whole)}
    for run, end in zip(runs, ends, strict=True):
        if run.plain:
            cuts |= {end - len(run.text), end}
    while True:
        ids: list[int] = []
        parts: list[np.ndarray] = []
        places = sorted(cuts)
        for start, stop in itertools.pairwise(places):
            segment = tokenizer(
                whole[start:stop],
                add_special_tokens=False,
                split_special_tokens=bool(literal[start]),
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
    return Encoded(inputs, *_of_tokens(spans, kinds, words), spans, _weights(spans, runs))


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
    if not len(long):
        return set()
    # Only the last token that begins before a border can reach past it.
    token = np.searchsorted(long[:, 0], borders, side="left") - 1
    inside = (token >= 0) & (borders < long[token, 1])
    return set(borders[inside].tolist())


def _weights(spans: np.ndarray, runs: Sequence[Run]) -> np.ndarray | None:
    """The weight of the turn of each token: that of an answer where a character of the token is part of one.

    No token holds characters of answers of different weights.
    """
    if all(run.weight == 1 for run in runs):
        return None
    flat = spans.reshape(-1)
    lengths = [len(run.text) for run in runs]
    of_answers = [run.weight if run.answer else np.inf for run in runs]
    characters = np.append(np.repeat(np.array(of_answers, np.float32), lengths), np.float32(np.inf))
    weights = np.minimum.reduceat(characters, flat)[::2].copy()
    weights[(spans[:, 0] == spans[:, 1]) | np.isinf(weights)] = 1
    return weights


def _of_tokens(spans: np.ndarray, kinds: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each token, the highest among its characters; and whether all of them are words."""
    flat = spans.reshape(-1)
    if not len(flat):
        return np.zeros(0, np.int8), np.zeros(0, bool)
    empty = spans[:, 0] == spans[:, 1]
    kinds = np.maximum.reduceat(kinds, flat)[::2].copy()
    kinds[empty] = Kind.SPECIAL
    return kinds, np.minimum.reduceat(words, flat)[::2] & ~empty
