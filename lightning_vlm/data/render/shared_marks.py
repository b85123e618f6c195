"""What a processor writes beside a picture because of what stands there.

Idefics2's writes a mark before and behind each picture, one between neighbours, and a space behind it before
most characters. It sees the markers that stand for texts and pictures in place of these. So what it wrote
because of them is taken back, and written again because of the real texts.
"""

from collections.abc import Sequence

from lightning_vlm.data.render.markers import MarkedPiece
from lightning_vlm.data.render.turns import TextSpan

SHARED_MARKS = {"Idefics2Processor": "fake_image_token"}
"""Processors that do so, and the attribute that names the mark."""


def beside_real_texts(
    pieces: Sequence[MarkedPiece], spans: Sequence[TextSpan], mark: str
) -> list[MarkedPiece]:
    """The pieces of a marked text as the processor would have made them of the real texts.

    Args:
        pieces: What it made of the marked text.
        spans: The texts.
        mark: What it writes before and behind a picture.
    """
    found: list[MarkedPiece] = []
    for place, piece in enumerate(pieces):
        before = piece.before
        earlier = found[-1] if found else None
        follows_picture = earlier is not None and earlier.picture is not None
        if follows_picture and _needs_space(pieces[place:], spans):
            before = f" {before}"
        if piece.picture is not None:
            picture = piece.picture.removesuffix(" ")
            if follows_picture and not before:
                picture = picture.removeprefix(mark)
            piece = piece._replace(picture=picture)
        found.append(piece._replace(before=before))
    return found


def _needs_space(rest: Sequence[MarkedPiece], spans: Sequence[TextSpan]) -> bool:
    """Whether the first character from here on asks for a space behind a picture."""
    for piece in rest:
        text = piece.before
        if piece.number is not None:
            text += spans[piece.number].text
        elif piece.picture is not None:
            text += piece.picture
        if text:
            return not text[0].isspace() and text[0] != "<"
    return False
