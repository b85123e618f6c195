"""Texts within a turn: a stretch of words, and boxes written as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_vlm.data.boxes.codec import Coordinate


@dataclass(frozen=True, slots=True)
class WrittenRun:
    """Located parts that follow each other, written as one text; a part of a turn in their place.

    Args:
        text: The text.
        coordinates: Where their numbers stand in it; `item` is the place in `WrittenTurns.items`.
    """

    text: str
    coordinates: tuple[Coordinate, ...]


class TextSpan(NamedTuple):
    """One stretch of text in a turn, as the chat template gets it, written by the user or the assistant.

    Args:
        text: The text.
        kinds: The `Kind` of each of its characters.
        weights: Array of shape [characters], float32: the weight of the turn that each is from.
        answer: Whether it is part of an answer.
        end_weight: The weight of what ends the turn.
        key: Where it stands in the conversation, for errors.
        reasoning: Whether it is reasoning, which templates leave out of earlier turns.
        boxes: From which to which character of it boxes are written.
        coordinates: Where their numbers stand in it.
    """

    text: str
    kinds: bytes
    weights: np.ndarray
    answer: bool
    end_weight: float
    key: str
    reasoning: bool = False
    boxes: tuple[tuple[int, int], ...] = ()
    coordinates: tuple[Coordinate, ...] = ()

    def part(self, stretch: slice) -> "TextSpan":
        """A part of it."""
        first, behind, _ = stretch.indices(len(self.text))
        boxes = []
        for start, stop in self.boxes:
            if start < behind and first < stop:
                boxes.append((max(start, first) - first, min(stop, behind) - first))
        coordinates = []
        for one in self.coordinates:
            if first <= one.start and one.stop <= behind:
                coordinates.append(one._replace(start=one.start - first, stop=one.stop - first))
        return self._replace(
            text=self.text[stretch],
            kinds=self.kinds[stretch],
            weights=self.weights[stretch],
            boxes=tuple(boxes),
            coordinates=tuple(coordinates),
        )

    def in_pieces(self) -> Iterator[tuple["TextSpan", bool]]:
        """It, cut where boxes begin and end, each piece with whether it is a box."""
        place = 0
        for start, stop in self.boxes:
            if place < start:
                yield self.part(slice(place, start)), False
            yield self.part(slice(start, stop)), True
            place = stop
        if place < len(self.text) or not self.text:
            yield (self.part(slice(place, None)) if place else self), False
