"""How a model sees a picture: how large, and which part of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """How a model sees a picture.

    Args:
        size: Width and height of the upright picture as it came, in pixels.
        seen: Width and height after the processor's resizing, in pixels, in which some families count.
        crop: Which stretch (x1, y1, x2, y2) of the picture is seen, in fractions of it. It reaches beyond
            0..1 where the processor pads, and less far where it cuts the edges off.

    >>> View((640, 480), (644, 476)).crop
    (0.0, 0.0, 1.0, 1.0)
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def to_seen(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """Numbers x, y, x, y, ... in fractions of the picture, as fractions of what is seen.

        >>> View((100, 50), (10, 10), crop=(0.0, -0.5, 1.0, 1.5)).to_seen((0.5, 0.0))
        (0.5, 0.25)
        """
        start, extent = self._frame()
        return tuple((value - start[at % 2]) / extent[at % 2] for at, value in enumerate(numbers))

    def from_seen(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The way back: fractions of what is seen, as fractions of the picture.

        >>> View((100, 50), (10, 10), crop=(0.0, -0.5, 1.0, 1.5)).from_seen((0.5, 0.25))
        (0.5, 0.0)
        """
        start, extent = self._frame()
        return tuple(start[at % 2] + value * extent[at % 2] for at, value in enumerate(numbers))

    def _frame(self) -> tuple[tuple[float, float], tuple[float, float]]:
        x1, y1, x2, y2 = self.crop
        return (x1, y1), (x2 - x1, y2 - y1)
