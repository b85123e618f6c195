"""From characters with known authors to token ids, each with its kind."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.char_runs import CharRun
from lightning_vlm.kinds import Kind


class Encoded(NamedTuple):
    """What `encode` gives.

    Args:
        inputs: As a tokenizer gives it for a list of one text.
        spans: Array of shape [length, 2]: from which character to which each token goes.
        kinds: Array of shape [length], int8, a `Kind` for each token.
        from_user: Array of shape [length], bool: where a token is made of a person's words alone.
        weights: Array of shape [length], float32: the weight of the turn of each token of an answer, 1 for
            others.
    """

    inputs: dict[str, Any]
    spans: np.ndarray
    kinds: np.ndarray
    from_user: np.ndarray
    weights: np.ndarray


class _Characters:
    """Arrays over the characters of runs, each with one entry more, for spans that end at the end."""

    def __init__(self, runs: Sequence[CharRun]) -> None:
        self.text = "".join(run.text for run in runs)
        size = len(self.text) + 1
        self.kinds = np.zeros(size, np.int8)
        self.answers = np.zeros(size, np.int64)
        self.weights = np.full(size, np.inf, np.float32)
        """Infinite outside of answers."""
        self.from_user = np.zeros(size, bool)
        self.literal = np.zeros(size, bool)
        self.literal_borders: set[int] = set()
        """Where runs that must be tokenized as ordinary text begin and end."""
        start = 0
        for run in runs:
            stop = start + len(run.text)
            self.kinds[start:stop] = np.frombuffer(run.kinds, np.int8)
            self.answers[start:stop] = run.answer
            if run.weights is not None:
                self.weights[start:stop] = run.weights
            self.from_user[start:stop] = run.from_user
            if run.literal:
                self.literal[start:stop] = True
                self.literal_borders |= {start, stop}
            start = stop


def encode(
    tokenizer: PreTrainedTokenizerBase, runs: Sequence[CharRun], options: Mapping[str, Any]
) -> Encoded:
    """Tokenize runs as one text.

    It is cut only around literal runs, and where a token would be half answer, half something else.

    Args:
        tokenizer: A fast one.
        runs: The text, in order.
        options: For the tokenizer, such as `add_special_tokens`.
    """
    characters = _Characters(runs)
    inputs = dict(tokenizer([characters.text], return_offsets_mapping=True, **options))
    spans = _spans(inputs.pop("offset_mapping")[0], 0)
    cuts = _straddled_borders(spans, characters) | characters.literal_borders
    if cuts:
        ids, spans = _encode_segments(tokenizer, characters, inputs["input_ids"][0], spans, cuts)
        inputs = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    no_characters = spans[:, 0] == spans[:, 1]  # tokens that the tokenizer adds at the beginning and end
    kinds = _reduce(np.maximum, characters.kinds, spans)
    kinds[no_characters] = Kind.SPECIAL
    weights = _reduce(np.minimum, characters.weights, spans)
    weights[no_characters | np.isinf(weights)] = 1
    from_user = _reduce(np.minimum, characters.from_user, spans) & ~no_characters
    return Encoded(inputs, spans, kinds, from_user, weights)


def _encode_segments(
    tokenizer: PreTrainedTokenizerBase,
    characters: _Characters,
    whole_ids: list[int],
    whole_spans: np.ndarray,
    cuts: set[int],
) -> tuple[list[int], np.ndarray]:
    """The ids and spans of a text that is cut into segments, with the tokens that are added around the whole.

    A segment may be tokenized otherwise than the same text within the whole, and so have tokens that reach
    over other borders of answers. Then there is a cut at those borders as well.
    """
    (own,) = np.nonzero(whole_spans[:, 0] < whole_spans[:, 1])
    front, back = (own[0], own[-1] + 1) if len(own) else (len(whole_ids), len(whole_ids))
    text, missing = characters.text, cuts | {0, len(characters.text)}
    places: set[int] = set()
    while missing:
        places |= missing
        ids = whole_ids[:front]
        spans = [whole_spans[:front]]
        for start, stop in itertools.pairwise(sorted(places)):
            segment = tokenizer(
                text[start:stop],
                add_special_tokens=False,
                split_special_tokens=bool(characters.literal[start]),
                return_offsets_mapping=True,
            )
            ids += segment["input_ids"]
            spans.append(_spans(segment["offset_mapping"], start))
        ids += whole_ids[back:]
        spans.append(whole_spans[back:])
        missing = _straddled_borders(np.concatenate(spans), characters)
    return ids, np.concatenate(spans)


def _spans(offsets: Sequence[tuple[int, int]], start: int) -> np.ndarray:
    """Array of shape [tokens, 2]: from which character to which each token goes.

    Characters that a tokenizer leaves out, such as white space before a word, belong to the token after them.
    """
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    if len(spans):
        before = np.append(0, np.maximum.accumulate(spans[:, 1])[:-1])
        spans[:, 0] = np.minimum(spans[:, 0], before)
    return spans + start


def _straddled_borders(spans: np.ndarray, characters: _Characters) -> set[int]:
    """Where inside a token an answer begins or ends, or the weight within an answer changes."""
    answers, weights = characters.answers, characters.weights
    changes = (answers[1:] != answers[:-1]) | (weights[1:] != weights[:-1])
    borders = np.flatnonzero(changes) + 1
    long = spans[spans[:, 1] - spans[:, 0] > 1]
    if not len(long):
        return set()
    # Only the last token that begins before a border can reach past it.
    token = np.searchsorted(long[:, 0], borders, side="left") - 1
    inside = (token >= 0) & (borders < long[token, 1])
    return set(borders[inside].tolist())


def _reduce(function: np.ufunc, values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """A function of the values of each token's characters, such as their maximum."""
    if not len(spans):
        return values[:0].copy()
    return function.reduceat(values, spans.reshape(-1))[::2].copy()
