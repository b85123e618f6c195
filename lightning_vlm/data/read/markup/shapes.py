"""What stands in a text for a place in a picture, and what it becomes."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.data.conversation import Located, Part
from lightning_vlm.data.read.box_format import EXAMPLES, BoxFormat
from lightning_vlm.data.read.located import located
from lightning_vlm.data.read.reading import Location
from lightning_vlm.nearest import shorten


class Shape(NamedTuple):
    """A point, a box or an outline as it is written.

    Args:
        numbers: As they stand there: two are a point, four a box, more of them an outline.
        label: What is there.
        outline: Whether they are an outline in any case.
        image: The number of its picture, where that is written.
    """

    numbers: tuple[float, ...]
    label: str | None = None
    outline: bool = False
    image: int | None = None


class Piece(NamedTuple):
    """A stretch of a text that is more than words.

    Args:
        start: Its first character.
        stop: Behind its last one.
        parts: What it becomes.
    """

    start: int
    stop: int
    parts: Sequence[Part]


def located_shapes(
    shapes: Sequence[Shape], written: str, at: Location, format: BoxFormat | None = None
) -> list[Located]:
    """The parts that shapes become.

    Args:
        shapes: What a stretch of text spells.
        written: The stretch.
        at: Where it stands.
        format: The unit that this way to write has by itself; None where it is `data.box_format`.

    Raises:
        DataError: Nothing says in which unit they are.
    """
    if format is None:
        at.reading.notes.box_format_is_used = True
        format = at.reading.box_format
    if format is None:
        found = f"{shorten(written, 50)}, whose unit nothing says"
        raise at.error(found, f"{EXAMPLES}; or text, which leaves it as words")
    return [
        located(format.numbers(shape.numbers), shape.label, shape.image, format.pixels, shape.outline)
        for shape in shapes
    ]
