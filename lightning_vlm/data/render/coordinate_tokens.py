"""Which tokens of a text are the numbers of boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.batch.coordinates import NumberToken
from lightning_vlm.data.boxes.codec import Coordinate
from lightning_vlm.data.boxes.number_tokens import BINS, number_tokens


class FoundNumbers(NamedTuple):
    """Tokens of numbers.

    Args:
        tokens: In order, of numbers that have no token with any other character.
        whole: The items all of whose numbers are such.
    """

    tokens: list[NumberToken]
    whole: set[int]


class NumberFinder:
    """Finds the tokens of numbers.

    Args:
        tokenizer: Of the model.
        bins: Tokens that stand for a number, such as `BoxCodec.tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bins: Sequence[str]) -> None:
        self._digits: dict[tuple[int, int], int] = {}
        """The id of each token of digits, by how many these are and their value."""
        self._bins: set[int] = set()
        for digits, found in number_tokens(tokenizer, bins).items():
            if digits == BINS:
                self._bins = set(found.ids.tolist())
            else:
                for value, number in zip(found.values.tolist(), found.ids.tolist(), strict=True):
                    self._digits[digits, int(value)] = number

    def find(
        self, text: str, coordinates: Sequence[Coordinate], spans: np.ndarray, ids: np.ndarray
    ) -> FoundNumbers:
        """Find the tokens of some coordinates.

        Args:
            text: What was tokenized.
            coordinates: Places in it.
            spans: Array of shape [length, 2]: from which character to which each token goes.
            ids: Array of shape [length].
        """
        tokens: list[NumberToken] = []
        items = {coordinate.item for coordinate in coordinates}
        reached = np.maximum.accumulate(spans[:, 1])
        for coordinate in coordinates:
            first = int(np.searchsorted(reached, coordinate.start, side="right"))
            last = int(np.searchsorted(reached, coordinate.stop - 1, side="right"))
            of_number = self._of_number(text, coordinate, range(first, last + 1), spans, ids)
            if of_number is None:
                items.discard(coordinate.item)
            else:
                tokens += of_number
        return FoundNumbers(tokens, items)

    def _of_number(
        self, text: str, coordinate: Coordinate, places: range, spans: np.ndarray, ids: np.ndarray
    ) -> list[NumberToken] | None:
        """The tokens of one number; None if one of them holds anything else."""
        start, stop, item, axis, whole = coordinate
        if len(places) == 1 and int(ids[places[0]]) in self._bins:
            return [NumberToken(places[0], item, axis, 1 / whole, BINS)]
        number = text[start:stop]
        point = number.find(".") if "." in number else len(number)
        found = []
        for place in places:
            begin, end = spans[place].tolist()
            written = text[max(begin, start) : end]
            # A span may begin with white space that the tokenizer has left out.
            is_more = text[begin:start].strip() != "" or end > stop
            if written == "." and not is_more:
                continue
            is_digits = written.isascii() and written.isdigit()
            if is_more or not is_digits or self._digits.get((len(written), int(written))) != ids[place]:
                return None
            last = end - 1 - start
            power = point - last - (1 if last < point else 0)
            found.append(NumberToken(place, item, axis, 10.0**power / whole, len(written)))
        return found or None
