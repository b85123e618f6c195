"""Private characters that mark a text's place, pictures and videos in what a chat template writes."""

import re
from collections.abc import Sequence
from typing import NamedTuple

ANSWER = ("\ue004", "\ue005")
"""Where an answer begins and ends."""
DEFINITION = ("\ue006", "\ue007")
"""Where something about tools that the template writes begins and ends."""
_MARKER = re.compile("\ue000([0-9]{1,9})\ue001|\ue002([^\ue002\ue003]*)\ue003|([\ue004-\ue007])")
"""The place of a text, or a picture or video."""


class MarkedPiece(NamedTuple):
    """What the template wrote up to a marker, and what the marker stands for.

    Args:
        before: What the template wrote between the marker before and this one.
        number: Of the text; None for a picture or video, and behind the last marker.
        picture: What stands for the picture or video; None for a text, and behind the last marker.
        picture_place: From which to which character of the marked text the picture or video goes.
        edge: One of `ANSWER` or `DEFINITION`, if the marker is one.
    """

    before: str
    number: int | None = None
    picture: str | None = None
    picture_place: tuple[int, int] = (0, 0)
    edge: str | None = None


def text_marker(number: int) -> str:
    """What stands for a text until the text takes its place."""
    return f"\ue000{number}\ue001"


def mark_media(text: str, placeholder: re.Pattern[str]) -> tuple[str, list[str]]:
    """A text with its placeholders of pictures and videos marked, and those placeholders."""
    return placeholder.sub("\ue002\\g<0>\ue003", text), placeholder.findall(text)


def split_at_markers(text: str) -> list[MarkedPiece]:
    """A marked text as its pieces. The last one has no marker.

    >>> [(piece.before, piece.number) for piece in split_at_markers(f"User: {text_marker(0)}</s>")]
    [('User: ', 0), ('</s>', None)]
    """
    pieces = []
    place = 0
    for match in _MARKER.finditer(text):
        number, picture, edge = match.groups()
        before = text[place : match.start()]
        pieces.append(MarkedPiece(before, int(number) if number else None, picture, match.span(2), edge))
        place = match.end()
    return [*pieces, MarkedPiece(text[place:])]


def text_numbers(text: str) -> list[int]:
    """The numbers of the texts in a marked text, in the order in which the template wrote them."""
    return [piece.number for piece in split_at_markers(text) if piece.number is not None]


def text_places(text: str) -> dict[int, tuple[int, int, int]]:
    """Of each text in a marked text, by its number: where the marker before ends, where its own begins and
    ends.

    >>> text_places(f"User: {text_marker(0)}</s>")
    {0: (0, 6, 9)}
    """
    places = {}
    behind = 0
    for match in _MARKER.finditer(text):
        if match[1]:
            places[int(match[1])] = (behind, *match.span())
        behind = match.end()
    return places


def with_edges(marked: str, edges: Sequence[tuple[int, str]]) -> str:
    """A text with marks at some places; those of one place stay in their order."""
    pieces = []
    before = 0
    for place, edge in sorted(edges, key=lambda edge: edge[0]):
        pieces += [marked[before:place], edge]
        before = place
    return "".join([*pieces, marked[before:]])
