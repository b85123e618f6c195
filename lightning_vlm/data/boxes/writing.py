"""What all codecs share when they write: numbers of what is seen, and where each stands in a text."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightning_vlm.data.boxes.codec import Coordinate, Written
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located


class Placed(NamedTuple):
    """What is to be written.

    Args:
        place: Its place in the run.
        label: What is there, on one line; None for no label.
        numbers: In fractions of what is seen, each from 0 to 1.
        view: How its picture is seen.
        image: The number of its picture.
        item: As it was given.
    """

    place: int
    label: str | None
    numbers: tuple[float, ...]
    view: View
    image: int
    item: Located


def placed(items: Sequence[Located], views: Sequence[View]) -> Iterator[Placed]:
    """Each item of a run, in fractions of what the model sees.

    What lies partly beyond what is seen is cut off at its edge.

    Raises:
        ValueError: Nothing of an item is seen.
    """
    for place, item in enumerate(items):
        image = len(views) - 1 if item.image is None else item.image
        seen = views[image].to_seen(item.numbers)
        if not _is_seen(seen):
            raise ValueError("what the processor leaves in the picture; it cuts the edges off")
        numbers = tuple(min(max(value, 0.0), 1.0) for value in seen)
        label = " ".join(item.label.split()) if item.label else None
        yield Placed(place, label or None, numbers, views[image], image, item)


def _is_seen(numbers: Sequence[float]) -> bool:
    """Whether numbers x, y, x, y, ... reach into 0..1."""
    return all(min(axis) <= 1 and max(axis) >= 0 for axis in (numbers[::2], numbers[1::2]))


class TextWriter:
    """Puts a text together, and notes where its numbers stand.

    >>> writer = TextWriter()
    >>> writer.add("x: ")
    >>> writer.number("125", item=0, axis=0, whole=1000)
    >>> writer.written()
    Written(text='x: 125', coordinates=(Coordinate(start=3, stop=6, item=0, axis=0, whole=1000),))
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._coordinates: list[Coordinate] = []

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return self._length > 0

    def add(self, text: str) -> None:
        """Write some text."""
        self._parts.append(text)
        self._length += len(text)

    def number(self, text: str, item: int, axis: int, whole: float) -> None:
        """Write a number, as of `Coordinate`."""
        start = self._length
        self.add(text)
        self._coordinates.append(Coordinate(start, self._length, item, axis, whole))

    def written(self) -> Written:
        """All of it."""
        return Written("".join(self._parts), tuple(self._coordinates))
