"""What drawn pictures are made of: colours, shapes and words."""

import math
from dataclasses import dataclass

Colour = tuple[int, int, int]
Point = tuple[float, float]
SIDE = 64
"""The side of a picture, in the units in which everything is decided."""

SHADES: dict[str, tuple[Colour, Colour]] = {
    "red": ((205, 0, 0), (255, 55, 55)),
    "green": ((0, 140, 0), (80, 255, 70)),
    "blue": ((0, 0, 190), (70, 100, 255)),
    "yellow": ((225, 210, 0), (255, 255, 80)),
    "orange": ((235, 115, 0), (255, 155, 40)),
    "purple": ((105, 10, 130), (155, 70, 190)),
    "pink": ((240, 125, 170), (255, 180, 215)),
    "brown": ((110, 40, 15), (168, 82, 50)),
    "teal": ((0, 110, 110), (40, 150, 150)),
    "gray": ((112, 112, 112), (148, 148, 148)),
    "black": ((0, 0, 0), (35, 35, 35)),
    "white": ((238, 238, 238), (255, 255, 255)),
}
"""Each colour by name: the darkest and the lightest shade that has it, channel by channel."""

WORDS = tuple(
    """
    ant apple arm bag bat bed bell bird boat book bowl box bread bus cake can cap car cat chair clock cloud
    coat coin cow cup dawn desk dog door duck dust ear east egg exit farm fish flag fork fox frog game gate
    gift goat gold hat hen hill home ice ink jam jar joy key king kite lake lamp leaf lion map mask milk
    moss moon nest net north nut oak oil open owl park path pear pen pie pig plum pond pot queen quiz rain
    road rock roof rope rose salt sand sea ship shoe shop silk sky snow soap sock song soup south spoon stop
    sun swan tea tent tiger toy train tree van vase wall wave west wind wolf wood wool yak yarn year zebra
    zoo
    """.split()  # noqa: SIM905
)


def _at(radius: float, turn: float) -> Point:
    """The point at a distance from the middle, and at an angle from above, clockwise."""
    x = radius * math.sin(turn)
    y = -radius * math.cos(turn)
    return x, y


def _circle(radius: float = 1.0) -> list[Point]:
    angles = [2 * math.pi * step / 48 for step in range(48)]
    return [_at(radius, angle) for angle in angles]


def _star() -> list[Point]:
    points = []
    for tip in range(5):
        points.append(_at(1.0, math.pi * (2 * tip) / 5))
        points.append(_at(0.42, math.pi * (2 * tip + 1) / 5))
    return points


def _heart() -> list[Point]:
    points = []
    for step in range(40):
        t = 2 * math.pi * step / 40
        x = math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x, -(y + 2.5) / 14.5))
    return points


def _moon() -> list[Point]:
    outer = _arc(range(50, 311, 10), middle=0.0, radius=1.0)
    inner = _arc(range(280, 79, -10), middle=0.45, radius=0.78)
    return outer + inner


def _arc(degrees: range, middle: float, radius: float) -> list[Point]:
    """Points around one that lies at `middle` on the horizontal axis, at angles from that axis, clockwise."""
    points = []
    for angle in degrees:
        t = math.radians(angle)
        points.append((middle + radius * math.cos(t), radius * math.sin(t)))
    return points


def _cross() -> list[Point]:
    bar = 0.36
    points: list[Point] = []
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):  # the quarters, clockwise
        quarter = [(1, bar), (bar, bar), (bar, 1)]
        if x * y < 0:
            quarter.reverse()
        points += [(x * across, y * down) for across, down in quarter]
    return points


@dataclass(frozen=True, slots=True)
class Shape:
    """How to draw a shape."""

    outline: list[Point]
    """Between -1 and 1, y down."""
    tilt: int = 15
    """How many degrees it may be turned either way and still be called by its name."""
    stretch: float = 1.2
    """How far its height may depart from its width, as a factor."""
    hole: list[Point] | None = None


SHAPES: dict[str, Shape] = {
    "circle": Shape(_circle(), tilt=0, stretch=1.0),
    "rectangle": Shape([(-1, -1), (1, -1), (1, 1), (-1, 1)], tilt=12, stretch=2.5),
    "triangle": Shape([(0, -1), (1, 1), (-1, 1)], tilt=15, stretch=1.3),
    "star": Shape(_star(), tilt=36),
    "cross": Shape(_cross()),
    "heart": Shape(_heart()),
    "diamond": Shape([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], tilt=8),
    "ring": Shape(_circle(), tilt=0, stretch=1.0, hole=_circle(0.52)),
    "arrow": Shape(
        [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)],
        tilt=180,
        stretch=1.0,
    ),
    "moon": Shape(_moon(), tilt=180, stretch=1.0),
}
