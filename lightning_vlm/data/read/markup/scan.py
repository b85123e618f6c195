"""Finds what in a text is a box, a point or a region, and makes parts of it."""

import re
from collections.abc import Callable, Mapping

from lightning_vlm.data.conversation import Located, Part, Text
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.markup import json_boxes
from lightning_vlm.data.read.markup.numbers import NUMBER, groups_in, shapes_of
from lightning_vlm.data.read.markup.shapes import Piece, Shape, located_shapes
from lightning_vlm.data.read.markup.tokens import (
    FLORENCE,
    FRACTIONS,
    KOSMOS,
    PALIGEMMA,
    POLYGON,
    florence_shapes,
    kosmos_shapes,
    labelled_tokens,
    paligemma_box,
)
from lightning_vlm.data.read.reading import Location
from lightning_vlm.nearest import shorten

_TAGS: dict[str, str] = {
    "box": "box",
    "bbox": "box",
    "region": "area",
    "point": "point",
    "click": "point",
    "quad": "outline",
    "polygon": "outline",
    "poly": "outline",
    "box_start": "box",
    "quad_start": "outline",
    "point_start": "point",
    "begin_of_box": "box",
    "det": "box",
}
"""What the numbers between tags are, see `shapes_of`."""
_OWN_FORMAT = {"det": BoxFormat("0-999")}
"""Tags whose numbers have a unit by themselves: those of DeepSeek-VL2."""
_PERCENT = BoxFormat("0-100")
_LISTED = rf"\[\s*{NUMBER}(?:\s*,\s*{NUMBER}){{3}}\s*\]"
_START = re.compile(
    rf"""
    (?: <(?: ref | \|object_ref_start\| | \|ref\| | phrase )> (?P<label>[^<]*)
        </?(?: ref | \|object_ref_end\| | \|/ref\| | phrase )> \s* )?
    (?:
        (?P<tag> <(?P<name>box|bbox|region|point|click|quad|polygon|poly)> (?P<inner>[^<]*) </(?P=name)> )
      | (?P<special> <\|(?P<mark>box_start|quad_start|point_start|begin_of_box|det)\|> (?P<within>[^<]*)
            <\|(?:box_end|quad_end|point_end|end_of_box|/det)\|> )
      | (?P<kosmos> {KOSMOS} )
      | (?P<florence> {POLYGON} | {FLORENCE} )
      | (?P<paligemma> {PALIGEMMA} )
      | (?P<lists> \[\s*{_LISTED}(?:\s*,\s*{_LISTED})*\s*\] | {_LISTED} )
      | (?P<molmo> <points?\s[^<>]*> (?P<said>[^<]*) </points?> )
    )
    | (?P<json> {json_boxes.START} )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_OPEN = re.compile(rf"<(?:{'|'.join(_TAGS)}|\|(?:{'|'.join(_TAGS)})\|)>\s*(?:[\[(]+\s*)?\d", re.IGNORECASE)
_ATTEMPTS = 200
"""How often JSON that is none is looked into in a text, which takes long in some."""
_THOUSANDTHS = BoxFormat("0-1000")
_ATTRIBUTE = re.compile(r"([xy][0-9]*|alt|coords)\s*=\s*\"([^\"]*)\"")
_ENTITY = "words between '<click>' and '</click>' are read as a key entity"
_NO_NUMBERS = "'<{}>' without numbers stays words"
_NOT_CLOSED = "tags of boxes with numbers that aren't closed stay words"
_LISTS = "lists of four fractions in texts stay words; data.box_format: fractions reads them as boxes"
_MASK = "'<seg...>' tokens of masks stay words, and the box before them too"


def parts_in(text: str, at: Location, known: Mapping[str, Located] | None = None) -> list[Part]:
    """The parts of a text: words, and what lies in pictures.

    Args:
        text: Of a turn.
        at: Where it stands.
        known: Boxes that stand beside the text, by what stands for each in JSON.

    Raises:
        DataError: Boxes whose unit nothing says, or that aren't whole.
    """
    format = at.reading.box_format
    may_be_more = "<" in text or "[" in text or "{" in text
    if not may_be_more or (format is not None and format.is_words and not known):
        return [Text(text)]
    shapes = labelled_tokens(text)
    if shapes is not None:
        return list(located_shapes(shapes, text, at, FRACTIONS))
    if "<seg" in text and "<loc" in text:
        at.note(_MASK)
    return _Scan(text, at, known or {}).parts()


class _Scan:
    """One way through a text.

    Args:
        text: The text.
        at: Where it stands.
        known: As of `parts_in`.
    """

    def __init__(self, text: str, at: Location, known: Mapping[str, Located]) -> None:
        self._text = text
        self._at = at
        self._known = known
        self._attempts = _ATTEMPTS if json_boxes.may_hold_boxes(text) else 0
        self._label: str | None = None
        self._label_until = -1
        """Where the last box with a label ends: what follows it directly has the same label."""

    def parts(self) -> list[Part]:
        parts: list[Part] = []
        place = done = 0
        while match := _START.search(self._text, place):
            if match["json"]:
                piece, place = self._json(match)
            elif match["mark"] and self._attempts and (piece := self._json_in_marks(match)):
                place = match.end()
            else:
                piece = self._piece(match)
                place = match.end()
            if piece is None:
                continue
            if piece.start > done:
                parts.append(Text(self._text[done : piece.start]))
            parts += piece.parts
            done = piece.stop
        if done < len(self._text):
            parts.append(Text(self._text[done:]))
        if "<" in self._text and any(isinstance(part, Text) and _OPEN.search(part.text) for part in parts):
            self._at.note(_NOT_CLOSED)
        return parts

    def _json(self, match: re.Match[str]) -> tuple[Piece | None, int]:
        """The boxes of JSON that may begin here, and where to go on."""
        if self._attempts == 0:
            return None, match.end()
        read = json_boxes.read_json(self._text, match.start(), self._at, self._known)
        if read is None:
            self._attempts -= 1
            return None, match.end()
        return read.piece, read.stop

    def _json_in_marks(self, match: re.Match[str]) -> Piece | None:
        """The boxes of JSON between the marks of an answer, as GLM-4.xV writes it."""
        read = json_boxes.read_json(self._text, match.start("within"), self._at, self._known)
        if read is None:
            self._attempts -= 1
        if read is None or read.piece is None or self._text[read.stop : match.end("within")].strip():
            return None
        return Piece(match.start(), match.end(), read.piece.parts)

    def _piece(self, match: re.Match[str]) -> Piece | None:
        label = match["label"]
        if label is None and match.start() == self._label_until:
            label = self._label
        kind = next(name for name in _READERS if match[name])
        parts = _READERS[kind](match, self._at, label.strip() or None if label else None)
        if parts is None:
            return None
        self._label, self._label_until = label, match.end()
        return Piece(match.start(), match.end(), parts)


def _tag(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    name = (match["name"] or match["mark"]).lower()
    inner = match["inner"] if match["name"] else match["within"]
    groups = groups_in(inner)
    if groups is None and name == "click" and inner.strip():
        at.note(_ENTITY)
        return [Text(inner, entity=True)]
    if groups is None or (name == "begin_of_box" and sum(map(len, groups)) < 2):
        if name != "begin_of_box":  # GLM's answers stand between these marks, whatever they are
            at.note(_NO_NUMBERS.format(name))
        return None
    shapes = shapes_of(groups, _TAGS[name])
    if shapes is None:
        count = sum(map(len, groups))
        expected = "x, y of a point, x1, y1, x2, y2 of a box, or more pairs of numbers"
        raise at.error(f"{shorten(match[0], 50)}, a place of {count} numbers", expected)
    outline = _TAGS[name] == "outline"
    made = [Shape(numbers, label, outline and len(numbers) > 4) for numbers in shapes]
    return list(located_shapes(made, match[0], at, _OWN_FORMAT.get(name)))


def _kosmos(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    return list(located_shapes(kosmos_shapes(match["kosmos"], label), match[0], at, FRACTIONS))


def _florence(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    shapes = florence_shapes(match["florence"], label)
    if shapes is None:
        raise at.error(f"{shorten(match[0], 50)}, an odd number of tokens", "two of them for each x and y")
    return list(located_shapes(shapes, match[0], at, FRACTIONS))


def _paligemma(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    shapes = [Shape(paligemma_box(match["paligemma"]), label)]
    return list(located_shapes(shapes, match[0], at, FRACTIONS))


def _molmo(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    """Points of Molmo in percent: `<point x="10.5" y="20" alt="a dog">a dog</point>`."""
    values = dict(_ATTRIBUTE.findall(match["molmo"].partition(">")[0]))
    said = (values.pop("alt", "") or match["said"]).strip() or label
    if "coords" in values:
        shapes = _points_of_pictures(values["coords"], said)
        if not shapes:
            raise at.error(shorten(match[0], 50), 'the numbers of points, as coords="1 1 103 204"')
        return list(located_shapes(shapes, match[0], at, _THOUSANDTHS))
    names = [
        f"{axis}{number}" for number in sorted({name[1:] for name in values}, key=_order) for axis in "xy"
    ]
    groups = [groups_in(values.get(name, "")) for name in names]
    if not groups or not all(group and len(group) == 1 and len(group[0]) == 1 for group in groups):
        raise at.error(shorten(match[0], 50), 'x and y of each point in percent, as x="10.5" y="20"')
    numbers = [group[0][0] for group in groups if group]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return list(located_shapes([Shape(pair, said) for pair in pairs], match[0], at, _PERCENT))


def _points_of_pictures(coords: str, label: str | None) -> list[Shape]:
    """Points of Molmo 2: the number of a picture from 1, then a number, x and y of each point; `;` between.

    >>> [(shape.numbers, shape.image) for shape in _points_of_pictures("1 1 103 204;2 2 500 600", None)]
    [((103.0, 204.0), 0), ((500.0, 600.0), 1)]
    """
    shapes: list[Shape] = []
    for of_picture in re.split(r"[;:]", coords):
        groups = groups_in(of_picture)
        numbers = groups[0] if groups and len(groups) == 1 else ()
        if len(numbers) % 3 != 1 or len(numbers) < 4 or not 1 <= numbers[0] < 1e6:
            return []
        image = int(numbers[0]) - 1
        shapes += [
            Shape(numbers[place + 1 : place + 3], label, image=image) for place in range(1, len(numbers), 3)
        ]
    return shapes


def _order(number: str) -> tuple[int, str]:
    """Orders whole numbers by their size, also those of more digits than Python reads."""
    digits = number.lstrip("0")
    return len(digits), digits


def _lists(match: re.Match[str], at: Location, label: str | None) -> list[Part] | None:
    """Bare lists of four numbers: `[0.12, 0.3, 0.5, 0.8]` of LLaVA, `[[120, 300, 500, 800]]` of GLM."""
    written = match["lists"]
    groups = groups_in(written) or []
    are_fractions = "." in written and all(0 <= number <= 1 for group in groups for number in group)
    format = at.reading.box_format
    if format is None or format.is_words:
        if are_fractions and format is None:
            at.note(_LISTS)
        return None
    is_box = label is not None or written.startswith("[[")
    if not (are_fractions if format.unit == "fractions" else is_box):
        return None
    return list(located_shapes([Shape(group, label) for group in groups], written, at))


_READERS: dict[str, Callable[[re.Match[str], Location, str | None], list[Part] | None]] = {
    "tag": _tag,
    "special": _tag,
    "kosmos": _kosmos,
    "florence": _florence,
    "paligemma": _paligemma,
    "molmo": _molmo,
    "lists": _lists,
}
