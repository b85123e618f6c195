"""Who wrote each character of a rendered conversation: the template, a picture, or a person."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_vlm.data.boxes.codec import Coordinate
from lightning_vlm.data.render.answer_places import AnswerPlace
from lightning_vlm.data.render.markers import ANSWER, DEFINITION, MarkedPiece
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.kinds import Kind


class CharRun(NamedTuple):
    """A stretch of text by one author.

    Args:
        text: The text.
        kinds: A `Kind` for each character.
        answer: Which answer it is part of, from 1 on; 0 is none. No token will hold parts of two.
        weights: Array of shape [characters], float32: the weight of the turn of each character of an answer;
            None outside of answers. No token of an answer will hold characters of two weights.
        from_user: Whether the conversation holds it, in a turn of any role. Otherwise the template or the
            processor wrote it.
        literal: Whether it spells a special token, and must be tokenized as ordinary text.
        is_box: Whether a box is written there, whose text may have special tokens.
        coordinates: Where the numbers of boxes stand in it.
    """

    text: str
    kinds: bytes
    answer: int = 0
    weights: np.ndarray | None = None
    from_user: bool = False
    literal: bool = False
    is_box: bool = False
    coordinates: tuple[Coordinate, ...] = ()


def char_runs(
    pieces: Sequence[MarkedPiece],
    spans: Sequence[TextSpan],
    answers: Sequence[AnswerPlace],
    trailer: str,
    special: re.Pattern[str],
    bos_token: str,
) -> list[CharRun]:
    """The runs of a marked text, with the real texts in place of their markers.

    Args:
        pieces: What a processor made of a marked text.
        spans: The texts.
        answers: The answers, in order.
        trailer: What the template wrote behind the last marker.
        special: Finds a special token where a text spells it.
        bos_token: The tokenizer's.
    """
    pieces, added = _without_added(pieces, trailer)
    runs: list[CharRun] = []
    number = 0  # of the answer that the piece is in, or of the last one before it
    answer: AnswerPlace | None = None
    weight = 1.0
    kind = Kind.SPECIAL
    for place, piece in enumerate(pieces, 1):
        if answer is None:
            runs.append(_no_answer(piece.before, kind))
        else:
            runs.append(_answer_part(piece.before, number, weight))
        if piece.edge == ANSWER[0] or place == len(pieces):
            runs.append(_no_answer(added, Kind.SPECIAL))
            added = ""
        if piece.edge == ANSWER[0]:
            answer = answers[number]
            number += 1
            weight = answer.first_weight
        elif piece.edge == ANSWER[1]:
            answer = None
        elif piece.edge is not None:
            kind = Kind.INSTRUCTION if piece.edge == DEFINITION[0] else Kind.SPECIAL
        if piece.picture is not None:
            # PaliGemma's processor writes the begin-of-sequence token behind the pictures.
            picture = piece.picture.removesuffix(bos_token)
            runs.append(_no_answer(picture, Kind.IMAGE))
            runs.append(_no_answer(piece.picture.removeprefix(picture), Kind.SPECIAL))
        if piece.number is not None:
            span = spans[piece.number]
            for text, is_box in span.in_pieces():
                literal = not is_box and special.search(text.text) is not None
                run = CharRun(text.text, text.kinds, 0, None, True, literal, is_box, text.coordinates)
                if answer is not None:
                    run = run._replace(answer=number, weights=text.weights)
                runs.append(run)
            if answer is not None:
                weight = answer.end_weight
    return runs


def without_front(
    pieces: Sequence[MarkedPiece], begin: str, bos_token: str
) -> tuple[list[MarkedPiece], list[CharRun]]:
    """The pieces without what a processor wrote in front of a text, and that as runs.

    Kosmos-2's processor writes the begin-of-sequence token and the picture there.

    Args:
        pieces: What the processor made of a marked text.
        begin: What the template wrote before the first marker.
        bos_token: The tokenizer's.
    """
    first, *others = pieces
    if first.before == begin or not first.before.endswith(begin):
        return list(pieces), []
    front = first.before.removesuffix(begin)
    picture = front.removeprefix(bos_token).rstrip()
    behind = front[front.rindex(picture) + len(picture) :] if picture else ""
    start = front.removesuffix(behind).removesuffix(picture)
    runs = [
        _no_answer(start, Kind.SPECIAL),
        _no_answer(picture, Kind.IMAGE),
        _no_answer(behind, Kind.SPECIAL),
    ]
    return [first._replace(before=begin), *others], runs


def _without_added(pieces: Sequence[MarkedPiece], trailer: str) -> tuple[list[MarkedPiece], str]:
    """The pieces without the text that a processor added at the end, and that text.

    PaliGemma's processor adds a new line, which ends the question even when the answer is already there. So
    it belongs before the first answer.
    """
    *others, last = pieces
    added = last.before[len(trailer) :] if last.before.startswith(trailer) else ""
    return [*others, last._replace(before=last.before.removesuffix(added))], added


def _no_answer(text: str, kind: Kind) -> CharRun:
    return CharRun(text, bytes([kind]) * len(text))


def _answer_part(text: str, answer: int, weight: float) -> CharRun:
    """A part of an answer that the template writes, and the model must learn to write."""
    weights = np.full(len(text), weight, np.float32)
    return CharRun(text, bytes([Kind.RESPONSE]) * len(text), answer, weights)
