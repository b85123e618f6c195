"""Location tokens: `<loc0123>` of PaliGemma, `<loc_123>` of Florence-2, `<patch_index_0123>` of Kosmos-2.

Their numbers have a unit by themselves: bins of the whole picture.
"""

import re

from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.markup.shapes import Shape

FRACTIONS = BoxFormat("fractions", "xyxy")
PALIGEMMA = r"(?:<loc\d{4}>){4}(?!<loc\d{4}>|<seg)"
"""A box of PaliGemma; with `<seg...>` behind it, it is a mask, which can't be read."""
FLORENCE = r"(?:<loc_\d{1,3}>){2,}"
"""Boxes, a point or an outline of Florence-2."""
POLYGON = rf"<poly>{FLORENCE}</poly>"
"""An outline of Florence-2."""
_PATCH = r"<patch_index_\d{4}>"
_DELIMITER = "</delimiter_of_multi_objects/>"
KOSMOS = rf"<object>(?:{_PATCH}{_PATCH}(?:{_DELIMITER})?)+</object>"
"""Boxes of Kosmos-2."""
_ALL_OF_PALIGEMMA = re.compile(rf"(?:\s*{PALIGEMMA}[^<;]*(?:;|\Z))+\s*")
_ALL_OF_FLORENCE = re.compile(rf"(?:[^<]+(?:{FLORENCE}|(?:{POLYGON})+))+\s*")
_ONE_OF_PALIGEMMA = re.compile(rf"({PALIGEMMA})([^<;]*)")
_ONE_OF_FLORENCE = re.compile(rf"([^<]+)({FLORENCE}|(?:{POLYGON})+)")
_RUN_OF_FLORENCE = re.compile(f"{POLYGON}|{FLORENCE}")
_BIN = re.compile(r"\d+")
_SIDE = 32
"""Rows and columns of the grid of Kosmos-2."""


def labelled_tokens(text: str) -> list[Shape] | None:
    """The boxes of a text that is nothing but labels and location tokens; None for any other text.

    >>> [shape.label for shape in labelled_tokens("<loc0000><loc0100><loc0512><loc1023> cat ; " * 2)]
    ['cat', 'cat']
    >>> [shape.label for shape in labelled_tokens("cat<loc_1><loc_2><loc_3><loc_4>")]
    ['cat']
    """
    if "<loc" not in text:
        return None
    if _ALL_OF_PALIGEMMA.fullmatch(text):
        found = _ONE_OF_PALIGEMMA.findall(text)
        return [Shape(paligemma_box(tokens), label.strip() or None) for tokens, label in found]
    if _ALL_OF_FLORENCE.fullmatch(text):
        shapes: list[Shape] = []
        for label, tokens in _ONE_OF_FLORENCE.findall(text):
            for run in _RUN_OF_FLORENCE.findall(tokens):
                several = florence_shapes(run, label.strip() or None)
                if several is None:
                    return None
                shapes += several
        return shapes
    return None


def paligemma_box(tokens: str) -> tuple[float, ...]:
    """The numbers of four tokens y1, x1, y2, x2, which go from 0 to 1023."""
    y1, x1, y2, x2 = (int(number) / 1023 for number in _BIN.findall(tokens))
    return x1, y1, x2, y2


def florence_shapes(tokens: str, label: str | None = None) -> list[Shape] | None:
    """Boxes of four tokens, a point of two, or an outline; None where there is an odd number of them.

    Eight tokens are two boxes. Where they are the corners of a quadrangle, as in text recognition, the boxes
    would be inverted or empty, and are refused.
    """
    values = tuple((int(number) + 0.5) / 1000 for number in _BIN.findall(tokens))
    if tokens.startswith("<poly>") and len(values) % 2 == 0:
        return [Shape(values, label, len(values) > 4)]
    if len(values) % 4 == 0:
        return [Shape(values[place : place + 4], label) for place in range(0, len(values), 4)]
    return None if len(values) % 2 else [Shape(values, label)]


def kosmos_shapes(written: str, label: str | None = None) -> list[Shape]:
    """Boxes of two patches each, the upper left and the lower right one, as its processor reads them.

    >>> kosmos_shapes("<object><patch_index_0000><patch_index_1023></object>")[0].numbers
    (0.015625, 0.015625, 0.984375, 0.984375)
    """
    numbers = [int(number) for number in re.findall(r"patch_index_(\d{4})", written)]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [Shape(_between(first, last), label) for first, last in pairs]


def _between(first: int, last: int) -> tuple[float, ...]:
    """From the middle of a patch to that of another; in one row or column, from edge to edge."""
    top, left = divmod(first, _SIDE)
    bottom, right = divmod(last, _SIDE)
    inset = 0.0 if top == bottom or left == right else 0.5
    return (
        (left + inset) / _SIDE,
        (top + inset) / _SIDE,
        (right + 1 - inset) / _SIDE,
        (bottom + 1 - inset) / _SIDE,
    )
