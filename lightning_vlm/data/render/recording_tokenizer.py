"""A tokenizer that records the origin of each character, and so the kind and weight of each token."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.tokens import Run, encode, one_kind
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind

MARKERS = re.compile("\ue000(\\d+)\ue001|\ue002(.*?)\ue003", re.DOTALL)
"""The place of a text, or an expanded picture."""


class SpecialTokens(NamedTuple):
    """The tokens that no text may become.

    Args:
        spelled: Finds one where a text spells it.
        never_words: Array of int64: their ids.
    """

    spelled: re.Pattern[str]
    never_words: np.ndarray


class _Text(dict[str, Any]):
    """What a tokenizer gives, where a processor may also ask for the token of a character."""

    def __init__(self, inputs: Mapping[str, Any], token_of: Mapping[int, int]) -> None:
        super().__init__(inputs)
        self._token_of = token_of

    def char_to_token(self, _: int, char: int) -> int | None:
        """As of a tokenizer; for the first and last characters of pictures."""
        return self._token_of.get(char)


class RecordingTokenizer:
    """Stands in for the tokenizer while the processor works: gets the expanded text, puts in the real texts,
    and knows the kind and the weight of each character.

    Args:
        tokenizer: The one that it stands in for.
        special: What it must recognise.
        template: The chat template that wrote the text.
        spans: The texts.
        source: Of the sample.
        trailer: What the template writes behind the last text or picture.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        special: SpecialTokens,
        template: ChatTemplate,
        spans: list[TextSpan],
        source: str,
        trailer: str,
    ) -> None:
        self._tokenizer, self._special, self._template = tokenizer, special, template
        self._spans, self._source, self._trailer = spans, source, trailer
        self.kinds = np.zeros(0, np.int8)
        self.weights: np.ndarray | None = None
        self.answer_ends: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> dict[str, Any]:
        for name in ("return_tensors", "return_offsets_mapping"):
            options.pop(name, None)
        runs = self._runs(text[0])
        encoded = encode(self._tokenizer, runs, options)
        ids = np.array(encoded.inputs["input_ids"][0])
        forged = ids[encoded.words & np.isin(ids, self._special.never_words)]
        if len(forged):
            token = self._tokenizer.convert_ids_to_tokens(int(forged[0]))
            found = f"text that spells {token}, which this tokenizer can't keep as text"
            raise DataError(self._source, "messages", found, "other words")
        self.kinds, self.weights = encoded.kinds, encoded.weights
        self.answer_ends = self._tokens_until_answers_end(runs, encoded.spans)
        return _Text(encoded.inputs, self._picture_tokens(text[0], runs, encoded.spans))

    def _runs(self, text: str) -> list[Run]:
        template, runs = self._template, list[Run]()
        pieces = MARKERS.split(text)  # template, number or None, picture or None, template, ...
        # Text that a processor adds at the end (PaliGemma's adds a new line) belongs to the question, even
        # when the answer is already there.
        added = pieces[-1][len(self._trailer) :] if pieces[-1].startswith(self._trailer) else ""
        pieces[-1] = pieces[-1].removesuffix(added)
        answer, weight = 0, 1.0  # of the answer that ended just before
        for place in range(0, len(pieces), 3):
            piece = pieces[place]
            number, picture = pieces[place + 1 : place + 3] or (None, None)
            if answer and piece.startswith(template.end_of_turn):
                runs.append(one_kind(template.end_of_turn, Kind.RESPONSE, answer, weight))
                piece = piece[len(template.end_of_turn) :]
            span = None if number is None else self._spans[int(number)]
            texts = self._text_runs(span, answer + 1) if span else []
            answers = bool(span and span.answer)
            gap = template.gap(piece) if answers else 0
            runs.append(one_kind(piece[: len(piece) - gap], Kind.SPECIAL))
            if answers or place == len(pieces) - 1:
                runs.append(one_kind(added, Kind.SPECIAL))
                added = ""
            if gap:
                runs.append(one_kind(piece[-gap:], Kind.RESPONSE, texts[0].answer, texts[0].weight))
            if picture is not None:
                begin = str(self._tokenizer.bos_token)  # PaliGemma's processor puts it behind the pictures
                begin = begin if picture.endswith(begin) else ""
                runs.append(one_kind(picture.removesuffix(begin), Kind.IMAGE))
                runs.append(one_kind(begin, Kind.SPECIAL))
            runs += texts
            answer, weight = (texts[-1].answer, texts[-1].weight) if answers else (0, 1.0)
        return runs

    def _text_runs(self, span: TextSpan, answer: int) -> list[Run]:
        """The runs of a text: one, but of an answer one for each stretch of one weight, from `answer` on."""
        if not span.answer:
            return [self._words(span, 0, 1.0)]
        (changes,) = np.nonzero(span.weights[1:] != span.weights[:-1])
        places = [0, *(int(change) + 1 for change in changes), len(span.text)]
        runs: list[Run] = []
        for start, stop in itertools.pairwise(places):
            weight = float(span.weights[start]) if stop else span.end_weight
            runs.append(self._words(span.part(slice(start, stop)), answer + len(runs), weight))
        if runs[-1].weight != span.end_weight:  # the last of several turns has no words
            runs.append(one_kind("", Kind.RESPONSE, answer + len(runs), span.end_weight))
        return runs

    def _words(self, span: TextSpan, answer: int, weight: float) -> Run:
        spelled = self._special.spelled.search(span.text) is not None
        return Run(span.text, span.kinds, answer, words=True, plain=spelled, weight=weight)

    def _tokens_until_answers_end(self, runs: list[Run], spans: np.ndarray) -> list[int]:
        """Up to which token each answer goes, without what ends its turn."""
        until = np.maximum.accumulate(spans[:, 1])
        place, ends = 0, []
        for run, after in itertools.zip_longest(runs, runs[1:]):
            place += len(run.text)
            last_of_answer = run.answer and run.words and not (after and after.answer and after.words)
            if last_of_answer:
                ends.append(int(np.searchsorted(until, place, side="right")))
        return ends

    def _picture_tokens(self, text: str, runs: list[Run], spans: np.ndarray) -> dict[int, int]:
        """The tokens of the first and last characters of each picture, by their places in the marked text."""
        pictures = [match.span(2) for match in MARKERS.finditer(text) if match[2] is not None]
        place, places = 0, []
        for run in runs:
            if run.kinds[:1] == bytes([Kind.IMAGE]):
                places.append((place, place + len(run.text)))
            place += len(run.text)
        found = {}
        for (start, stop), (begin, end) in zip(pictures, places, strict=True):
            found[start] = int(np.searchsorted(spans[:, 1], begin, side="right"))
            found[stop - 1] = int(np.searchsorted(spans[:, 1], end - 1, side="right"))
        return found
