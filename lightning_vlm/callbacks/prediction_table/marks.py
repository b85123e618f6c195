"""What lies in pictures, as it is drawn: boxes, points and outlines in fractions of their picture."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.parts import Box, Image, Located, Point

LABEL = 60
"""The most characters of a label."""
MOST = 30
"""How many marks of an answer are drawn."""


class Mark(NamedTuple):
    """A box, a point or a region.

    Args:
        kind: `box`, `point` or `region`.
        numbers: x and y in turn, in fractions of the picture.
        label: What is in it; empty if nobody says.
        picture: Which picture of the conversation it lies in, from 0.
    """

    kind: str
    numbers: tuple[float, ...]
    label: str = ""
    picture: int = 0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around it, within the picture.

        >>> Mark("region", (0.5, 0.25, 1.5, 0.5, 0.75, 0.75)).bounds
        (0.5, 0.25, 1.0, 0.75)
        """
        xs = sorted(min(max(x, 0.0), 1.0) for x in self.numbers[::2])
        ys = sorted(min(max(y, 0.0), 1.0) for y in self.numbers[1::2])
        return xs[0], ys[0], xs[-1], ys[-1]

    def in_pixels(self, width: float, height: float) -> list[tuple[float, float]]:
        """Its corners, or its one point.

        >>> Mark("box", (0.0, 0.5, 0.5, 1.0)).in_pixels(100, 50)
        [(0.0, 25.0), (50.0, 25.0), (50.0, 50.0), (0.0, 50.0)]
        """
        numbers = self.numbers
        if self.kind == "box":
            x1, y1, x2, y2 = numbers
            numbers = (x1, y1, x2, y1, x2, y2, x1, y2)
        return [(x * width, y * height) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]

    def scaled(self, size: tuple[int, int]) -> "Mark":
        """The same where its numbers are pixels of a picture of a size.

        >>> Mark("point", (10.0, 10.0)).scaled((100, 20)).numbers
        (0.1, 0.5)
        """
        return self._replace(numbers=tuple(value / size[at % 2] for at, value in enumerate(self.numbers)))


def mark_of(item: Located, picture: int = 0) -> Mark:
    """How something is drawn.

    Args:
        item: Its numbers are taken as they are.
        picture: Which picture it lies in, if it doesn't say so itself.
    """
    kind = "box" if isinstance(item, Box) else "point" if isinstance(item, Point) else "region"
    return Mark(kind, item.numbers, (item.label or "")[:LABEL], picture if item.image is None else item.image)


def marks_of(items: Iterable[Located]) -> list[Mark]:
    """How things in fractions of their pictures are drawn: at most `MOST`, and only what lies somewhere."""
    finite = [item for item in items if all(map(math.isfinite, item.numbers))]
    return [mark_of(item) for item in finite[:MOST]]


def marks_in(
    conversation: Conversation, sizes: Sequence[tuple[int, int] | None]
) -> tuple[list[Mark], list[Mark]]:
    """What a conversation says of its pictures.

    Args:
        conversation: Any.
        sizes: Width and height of each of its pictures, upright; None for one that can't be opened.

    Returns:
        What its last answer has, and what is said before that.
    """
    last = max((at for at, turn in enumerate(conversation.messages) if turn.role == "assistant"), default=-1)
    right: list[Mark] = []
    asked: list[Mark] = []
    pictures = 0
    for at, turn in enumerate(conversation.messages):
        for part in turn.parts:
            if isinstance(part, Image):
                pictures += 1
            elif isinstance(part, Located):
                mark = mark_of(part, max(pictures - 1, 0))
                size = sizes[mark.picture] if mark.picture < len(sizes) else None
                if part.pixels and size is None:
                    continue
                shown = mark.scaled(size) if part.pixels and size else mark
                (right if at == last else asked).append(shown)
    return right[:MOST], asked[:MOST]
