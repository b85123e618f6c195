"""A second tokenizer of a processor, for the question alone (the Q-Former of InstructBLIP)."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.markers import split_at_markers
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.errors import DataError


class QuestionTokenizer:
    """Stands in for such a tokenizer while a processor works, and gives it the text before the first answer.

    Tokens of pictures see all that it reads, and every answer sees those. In training as in generation it
    must therefore read nothing of any answer, nor of a later question, which an earlier answer doesn't know.

    Args:
        tokenizer: The one that it stands in for.
        name: Of that, in the processor.
        spans: The texts of the sample.
        source: Of the sample.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, spans: Sequence[TextSpan], source: str
    ) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._spans = spans
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> Any:
        encoded = self._tokenizer([self._question(text[0])], split_special_tokens=True, **options)
        length, limit = len(encoded["input_ids"][0]), self._tokenizer.model_max_length
        if length > limit:
            found = f"a question of {length} tokens"
            raise DataError(self._source, "messages", found, f"at most {limit} ({self._name})")
        return encoded

    def _question(self, marked: str) -> str:
        question = ""
        for piece in split_at_markers(marked):
            question += piece.before
            if piece.number is None:
                continue
            span = self._spans[piece.number]
            if span.answer:
                break
            question += span.text
        return question
