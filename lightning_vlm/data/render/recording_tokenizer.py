"""A tokenizer that knows who wrote each character, and so the kind and weight of each token."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.answer_places import AnswerPlace
from lightning_vlm.data.render.char_runs import CharRun, char_runs, without_front
from lightning_vlm.data.render.coordinate_tokens import FoundNumbers, NumberFinder
from lightning_vlm.data.render.markers import MarkedPiece, split_at_markers
from lightning_vlm.data.render.shared_marks import beside_real_texts
from lightning_vlm.data.render.special_tokens import SpecialTokens
from lightning_vlm.data.render.tokens import encode
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind


class RecordingTokenizer:
    """Stands in for the tokenizer while a processor works, and records what the tokens are.

    A processor expands the pictures of a text and calls its tokenizer. Just there this one puts the real
    texts in place of their markers.

    Args:
        tokenizer: The one that it stands in for.
        special: Its special tokens.
        answers: Where the answers are in the marked text.
        marked: The text that the processor gets.
        spans: The texts.
        source: Of the sample.
        finder: Finds the tokens of numbers of boxes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special: SpecialTokens,
        answers: Sequence[AnswerPlace],
        marked: str,
        spans: Sequence[TextSpan],
        source: str,
        finder: NumberFinder,
    ) -> None:
        self._tokenizer = tokenizer
        self._finder = finder
        self._special = special
        self._answers = answers
        marked_pieces = split_at_markers(marked)
        self._begin = marked_pieces[0].before
        self._trailer = marked_pieces[-1].before
        self._front: list[int] = []
        self.spans = spans
        self.source = source
        self.kinds = np.zeros(0, np.int8)
        """A `Kind` for each token."""
        self.weights: np.ndarray | None = None
        """The weight of the turn of each token of an answer, 1 for others; None where all turns weigh 1."""
        self.answer_ends: tuple[int, ...] = ()
        """Up to which token each answer goes, without what ends its turn."""
        self.media_spans: tuple[tuple[int, int], ...] = ()
        """From which token on, and up to which, each picture or video goes."""
        self.numbers = FoundNumbers([], set())
        """The tokens of numbers of boxes in answers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str] | str, **options: Any) -> Mapping[str, Any]:
        options.pop("return_tensors", None)
        options.pop("return_offsets_mapping", None)
        if isinstance(text, str):  # BLIP-2 makes the tokens of its picture by themselves
            front = self._tokenizer(text, **options)
            self._front = list(front["input_ids"])
            return front
        pieces = split_at_markers(text[0])
        if self._special.shared_mark:
            pieces = beside_real_texts(pieces, self.spans, self._special.shared_mark)
        bos_token = str(self._tokenizer.bos_token)
        pieces, front_runs = without_front(pieces, self._begin, bos_token)
        runs = char_runs(pieces, self.spans, self._answers, self._trailer, self._special.pattern, bos_token)
        runs = [*front_runs, *runs]
        encoded = encode(self._tokenizer, runs, options)
        ids = np.array(encoded.inputs["input_ids"][0])
        self._refuse_special_tokens(ids[encoded.from_user])
        self.kinds = encoded.kinds
        if any(answer.has_weights for answer in self._answers):
            self.weights = encoded.weights
        self.numbers = _numbers(runs, self._finder, encoded.spans, ids)
        self.answer_ends = _answer_ends(runs, encoded.spans, len(self._answers))
        start = sum(len(run.text) for run in front_runs)
        self.media_spans = _media_spans(runs[len(front_runs) :], encoded.spans, start)
        return _TokenizedText(encoded.inputs, _picture_tokens(pieces, self.media_spans))

    def add_front(self, input_ids: Tensor) -> None:
        """Put the tokens of a picture that the processor made by themselves in front of the others.

        Args:
            input_ids: Tensor of shape [length], int64: what the processor made. Nothing is added unless they
                are these tokens and those of the text.
        """
        count = len(self._front)
        is_longer = count and len(input_ids) == count + len(self.kinds)
        if not is_longer or input_ids[:count].tolist() != self._front:
            return
        self.kinds = np.concatenate([np.full(count, Kind.IMAGE, np.int8), self.kinds])
        if self.weights is not None:
            self.weights = np.concatenate([np.ones(count, np.float32), self.weights])
        self.answer_ends = tuple(end + count for end in self.answer_ends)
        tokens = [token._replace(position=token.position + count) for token in self.numbers.tokens]
        self.numbers = self.numbers._replace(tokens=tokens)

    def _refuse_special_tokens(self, ids_from_user: np.ndarray) -> None:
        """Raise if a person's words became a special token, which would let them forge turns or pictures."""
        forged = ids_from_user[np.isin(ids_from_user, self._special.ids)]
        if len(forged):
            token = self._tokenizer.convert_ids_to_tokens(int(forged[0]))
            found = f"text that spells {token}, which this tokenizer can't keep as text"
            raise DataError(self.source, "messages", found, "other words")


class _TokenizedText(dict[str, Any]):
    """What a tokenizer gives, where a processor may also ask for the token of a character."""

    def __init__(self, inputs: Mapping[str, Any], token_of: Mapping[int, int]) -> None:
        super().__init__(inputs)
        self._token_of = token_of

    @property
    def input_ids(self) -> Any:
        """As of a tokenizer."""
        return self["input_ids"]

    def char_to_token(self, _: int, char: int) -> int | None:
        """As of a tokenizer; for the first and last characters of pictures."""
        return self._token_of.get(char)


def _numbers(
    runs: Sequence[CharRun], finder: NumberFinder, spans: np.ndarray, ids: np.ndarray
) -> FoundNumbers:
    """The tokens of numbers of boxes in answers."""
    coordinates = []
    start = 0
    for run in runs:
        if run.answer:
            for one in run.coordinates:
                coordinates.append(one._replace(start=one.start + start, stop=one.stop + start))
        start += len(run.text)
    if not coordinates:
        return FoundNumbers([], set())
    return finder.find("".join(run.text for run in runs), coordinates, spans, ids)


def _answer_ends(runs: Sequence[CharRun], spans: np.ndarray, answers: int) -> tuple[int, ...]:
    reached = np.maximum.accumulate(spans[:, 1])  # up to which character each token and those before it go
    ends = [0] * answers
    has_words = [False] * answers
    place = 0
    for run in runs:
        place += len(run.text)
        if run.answer:
            number = run.answer - 1
            if run.from_user or not has_words[number]:
                ends[number] = place
            has_words[number] |= run.from_user
    return tuple(int(np.searchsorted(reached, end, side="right")) for end in ends)


def _media_spans(runs: Sequence[CharRun], spans: np.ndarray, start: int) -> tuple[tuple[int, int], ...]:
    """From which token on, and up to which, each picture or video goes; the runs begin at a character."""
    found = []
    place = start
    for run in runs:
        stop = place + len(run.text)
        if run.kinds.startswith(bytes([Kind.IMAGE])):
            first = int(np.searchsorted(spans[:, 1], place, side="right"))
            last = int(np.searchsorted(spans[:, 1], stop - 1, side="right"))
            found.append((first, last + 1))
        place = stop
    return tuple(found)


def _picture_tokens(pieces: Sequence[MarkedPiece], media_spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The tokens of the first and last characters of each picture, by their places in the marked text."""
    asked = [piece.picture_place for piece in pieces if piece.picture is not None]
    token_of = {}
    for (first, behind), (start, stop) in zip(asked, media_spans, strict=True):
        token_of[first] = start
        token_of[behind - 1] = stop - 1
    return token_of
