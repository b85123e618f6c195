"""What all codecs share when they read: numbers that a model wrote become parts, or faults."""

import math
import re
from collections.abc import Sequence

from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Located, Point, Region

NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?"
"""A number as Python and JSON write it."""
_NUMBERS = re.compile(rf"{NUMBER}|\b(?:nan|inf|infinity)\b", re.IGNORECASE)
_TINY = 1e-9


def numbers_in(text: str) -> list[float]:
    """All numbers of a text; one that is too large for a float is infinite.

    >>> numbers_in("(12,.5),(1e2,NaN)")
    [12.0, 0.5, 100.0, nan]
    """
    return [float(found) for found in _NUMBERS.findall(text)]


class Collector:
    """Gathers what a model wrote.

    - Numbers beyond what the model sees are cut off at its edge, and that is a fault. What lies outside
      altogether is left out.
    - A box whose corners are swapped is turned round, and that is a fault.
    - A box without width or height stays: a small one may have become so by rounding.
    - NaN and infinity are left out, and are a fault.

    Args:
        views: Of all pictures.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._views = views
        self._items: list[Located] = []
        self._faults: list[str] = []

    @property
    def last_image(self) -> int:
        """The number of the last picture."""
        return len(self._views) - 1

    def view(self, image: int) -> View | None:
        """How a picture is seen; None, and a fault, where there is none of that number."""
        if 0 <= image < len(self._views):
            return self._views[image]
        self.fault(f"picture {image + 1} of {len(self._views)}" if self._views else "a box without a picture")
        return None

    def fault(self, what: str) -> None:
        """Note what could not be read."""
        self._faults.append(what)

    def add(self, numbers: Sequence[float], image: int, label: str | None, step: float) -> None:
        """Add a point (2 numbers), a box (4) or the outline of a region (6, 8, ...).

        Args:
            numbers: x and y in turn, in fractions of what is seen.
            image: The number of the picture.
            label: What is there.
            step: How far apart two neighbouring numbers are, in fractions of what is seen.
        """
        if len(numbers) not in (2, 4) and (len(numbers) < 6 or len(numbers) % 2):
            self.fault(of_numbers(len(numbers)))
            return
        view = self.view(image)
        if view is None:
            return
        name = {2: "point", 4: "box"}.get(len(numbers), "region")
        if not all(math.isfinite(value) for value in numbers):
            self.fault(f"a {name} with numbers that aren't finite")
            return
        if name == "box":
            numbers = self._upright(numbers)
        inside = self._inside(numbers, name, view, step)
        if inside is not None:
            words = " ".join(label.split()) if label else ""
            # Half of a surrogate pair, as JSON may have, can't be written to a file.
            self._items.append(_part(inside, words.encode(errors="replace").decode(), image))

    def found(self) -> Found:
        """All of it."""
        return Found(tuple(self._items), tuple(self._faults))

    def _upright(self, numbers: Sequence[float]) -> Sequence[float]:
        x1, y1, x2, y2 = numbers
        if x1 <= x2 and y1 <= y2:
            return numbers
        self.fault("a box with swapped corners")
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def _inside(
        self, numbers: Sequence[float], name: str, view: View, step: float
    ) -> tuple[float, ...] | None:
        """Numbers as fractions of the picture, cut off at its edges; None if none of it is inside.

        In a picture that is padded, an edge may have been rounded into the padding: that is no fault.
        """
        seen = tuple(min(max(value, 0.0), 1.0) for value in numbers)
        exact = view.from_seen(tuple(numbers))
        x1, y1, x2, y2 = view.crop
        slack = (step * abs(x2 - x1), step * abs(y2 - y1)) if view.crop != (0, 0, 1, 1) else (_TINY, _TINY)
        axes = [exact[axis::2] for axis in (0, 1)]
        with_slack = list(zip(axes, slack, strict=True))
        if any(min(values) > 1 + off or max(values) < -off for values, off in with_slack):
            self.fault(f"a {name} outside of the picture")
            return None
        beyond = any(abs(value - kept) > _TINY for value, kept in zip(numbers, seen, strict=True))
        beyond = beyond or any(min(values) < -off or max(values) > 1 + off for values, off in with_slack)
        if beyond:
            self.fault(f"a {name} that reaches beyond the picture")
        return tuple(min(max(value, 0.0), 1.0) for value in view.from_seen(seen))


def of_numbers(count: int, what: str = "a box") -> str:
    """The fault of a box that has another number of numbers than it should.

    >>> of_numbers(3)
    'a box of 3 numbers'
    """
    if count == 0:
        return f"{what} without numbers"
    return f"{what} of one number" if count == 1 else f"{what} of {count} numbers"


def _part(numbers: tuple[float, ...], label: str, image: int) -> Located:
    if len(numbers) == 2:
        return Point((numbers[0], numbers[1]), label or None, image)
    if len(numbers) == 4:
        return Box((numbers[0], numbers[1], numbers[2], numbers[3]), label or None, image)
    return Region(numbers, label or None, image)
