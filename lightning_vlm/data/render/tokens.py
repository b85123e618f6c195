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
        from_user: Array of shape [length], bool: where a token is made of a person's words alone; no box is.
        weights: Array of shape [length], float32: the weight of the turn of each token of an answer, 1 for
            others.
    """

    inputs: dict[str, Any]
    spans: np.ndarray
    kinds: np.ndarray
    from_user: np.ndarray
    weights: np.ndarray


class _Characters:
    """Arrays over the characters of runs, each with one more entry, because a span may end after the last."""

    def __init__(self, runs: Sequence[CharRun]) -> None:
        self.text = "".join(run.text for run in runs)
        size = len(self.text) + 1
        self.kinds = np.zeros(size, np.int8)
        self.answers = np.zeros(size, np.int64)
        self.weights = np.full(size, np.inf, np.float32)
        """The weights are infinite outside of answers."""
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
            self.from_user[start:stop] = run.from_user and not run.is_box
            if run.literal:
                self.literal[start:stop] = True
                self.literal_borders |= {start, stop}
            start = stop


def encode(
    tokenizer: PreTrainedTokenizerBase, runs: Sequence[CharRun], options: Mapping[str, Any]
) -> Encoded:
    """Tokenize runs as one text.

    The text is cut only around literal runs, and where a token would be half answer, half something else.

    Args:
        tokenizer: A fast tokenizer.
        runs: The text, in order.
        options: Options of the tokenizer, such as `add_special_tokens`.
    """
    characters = _Characters(runs)
    inputs = dict(tokenizer([characters.text], return_offsets_mapping=True, **options))
    spans = _spans(inputs.pop("offset_mapping")[0], 0)
    cuts = _straddled_borders(spans, characters) | characters.literal_borders
    if cuts:
        ids, spans = _encode_segments(tokenizer, characters, inputs["input_ids"][0], spans, cuts)
        inputs = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    # Tokens without characters are those that the tokenizer adds at the beginning and end.
    is_added = spans[:, 0] == spans[:, 1]
    kinds = _reduce(np.maximum, characters.kinds, spans)
    kinds[is_added] = Kind.SPECIAL
    weights = _reduce(np.minimum, characters.weights, spans)
    weights[is_added] = 1
    weights[np.isinf(weights)] = 1
    from_user = _reduce(np.minimum, characters.from_user, spans)
    from_user[is_added] = False
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
    front = back = len(whole_ids)
    own_tokens = np.flatnonzero(whole_spans[:, 0] < whole_spans[:, 1])
    if len(own_tokens):
        front = own_tokens[0]
        back = own_tokens[-1] + 1
    text = characters.text
    places: set[int] = set()
    new_places = cuts | {0, len(text)}
    while new_places:
        places |= new_places
        ids = whole_ids[:front]
        spans_of_segments = [whole_spans[:front]]
        for start, stop in itertools.pairwise(sorted(places)):
            segment = tokenizer(
                text[start:stop],
                add_special_tokens=False,
                split_special_tokens=bool(characters.literal[start]),
                return_offsets_mapping=True,
            )
            ids += segment["input_ids"]
            spans_of_segments.append(_spans(segment["offset_mapping"], start))
        ids += whole_ids[back:]
        spans_of_segments.append(whole_spans[back:])
        spans = np.concatenate(spans_of_segments)
        new_places = _straddled_borders(spans, characters)
    return ids, spans


def _spans(offsets: Sequence[tuple[int, int]], start: int) -> np.ndarray:
    """Array of shape [tokens, 2]: from which character to which each token goes.

    Characters that a tokenizer leaves out, such as white space before a word, belong to the token after them.
    """
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    if len(spans):
        ends = np.maximum.accumulate(spans[:, 1])
        ends_of_tokens_before = np.append(0, ends[:-1])
        spans[:, 0] = np.minimum(spans[:, 0], ends_of_tokens_before)
    return spans + start


def _straddled_borders(spans: np.ndarray, characters: _Characters) -> set[int]:
    """Where inside a token an answer begins or ends, or the weight within an answer changes."""
    answer_changes = characters.answers[1:] != characters.answers[:-1]
    weight_changes = characters.weights[1:] != characters.weights[:-1]
    borders = np.flatnonzero(answer_changes | weight_changes) + 1
    lengths = spans[:, 1] - spans[:, 0]
    starts, stops = spans[lengths > 1].T
    if not len(starts):
        return set()
    # Only the last token that begins before a border can reach past it.
    token = np.searchsorted(starts, borders, side="left") - 1
    begins_before = token >= 0
    ends_after = stops[token] > borders
    return set(borders[begins_before & ends_after].tolist())


def _reduce(function: np.ufunc, values: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """A function of the values of each token's characters, such as their maximum."""
    if not len(spans):
        return values[:0].copy()
    # reduceat also gives the values between the spans, which are left out.
    of_spans_and_gaps = function.reduceat(values, spans.reshape(-1))
    return of_spans_and_gaps[::2].copy()
