"""Draw a picture from random numbers, and know exactly what is on it and where.

Everything is decided in units of 1/64 of the picture's side, so the picture's size in pixels changes nothing
but its sharpness. Boxes are measured on what was drawn, never computed from what was meant.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image, ImageDraw, ImageFont

from lightning_vlm.data.drawn.backgrounds import background
from lightning_vlm.data.drawn.geometry import FINE, fit, moved, turned, with_hole
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES, SIDE, WORDS, Colour, Point

GAP = 2
"""Free units between two things, so that none covers another."""
HOW_MANY = (1, 1, 1, 2, 2, 3, 4)
"""Things on a picture, as often as they are named here."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing to draw: a shape, or a word when `word` is not empty. Units are 1/64 of the side."""

    shape: str
    colour: str
    word: str
    x: int
    y: int
    width: int
    height: int
    turn: int
    """Degrees for a shape, height of the letters for a word."""

    @property
    def name(self) -> str:
        """What to call it: `red circle`, or `word "lamp"`."""
        if self.word:
            return f'word "{self.word}"'
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class DrawnThing:
    """A thing as it was drawn: `box` is (x1, y1, x2, y2) in fractions of the picture, around its pixels.

    `outline` is that of a shape, x1, y1, x2, y2, ...; a word has none.
    """

    thing: Thing
    box: tuple[float, float, float, float]
    outline: tuple[float, ...] = ()

    @property
    def centre(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def place(self) -> str:
        """Where it is, in words: `top left`, `left`, `centre`, ..."""
        x, y = self.centre
        down = _third(y, "top", "bottom")
        across = _third(x, "left", "right")
        if not down and not across:
            return "centre"
        return f"{down} {across}".strip()


def _third(value: float, first: str, last: str) -> str:
    """The name of the third in which a value lies; the middle one has none."""
    if value < 0.36:
        return first
    if value > 0.64:
        return last
    return ""


def belongs_to(layout: tuple[Thing, ...]) -> str:
    """The one split that may show these things at these places, for any seed, sizes and shades.

    A tenth of all layouts is kept for `val`, a tenth for `test`. So no picture of one split, from any seed,
    can show what a picture of another split shows.
    """
    things = [f"{thing.name},{thing.colour},{thing.x},{thing.y}" for thing in layout]
    text = ";".join(sorted(things))
    tenth = zlib.crc32(text.encode()) % 10
    if tenth == 0:
        return "val"
    if tenth == 1:
        return "test"
    return "train"


def layout(rng: Random, split: str, word_chance: float, most: int = 4) -> tuple[Thing, ...]:
    """Decide what is on a picture and where: one to `most` things that don't touch, no two alike."""
    while True:
        number = min(rng.choice(HOW_MANY), most)
        words = 0
        if rng.random() < word_chance:
            words = rng.choice((1, 1, 1, min(2, number)))
        things: list[Thing] = []
        for index in range(number):
            make = _some_word if index < words else _some_shape
            _add(things, make, rng, number)
        if things and belongs_to(tuple(things)) == split:
            return tuple(things)


def _add(things: list[Thing], make: Callable[[Random, int], Thing], rng: Random, number: int) -> None:
    """Add a thing that clashes with no other, if one is found soon."""
    for _ in range(12):
        thing = make(rng, number)
        clashes = [_clash(thing, other) for other in things]
        if not any(clashes):
            things.append(thing)
            return


def draw(
    rng: Random, things: tuple[Thing, ...], size: int, noise: float | None = None
) -> tuple[Image.Image, list[DrawnThing]]:
    """Draw things on a background of its own.

    Args:
        rng: Chooses shades, background and noise.
        things: What to draw. They may not overlap.
        size: The picture's side in pixels.
        noise: Share of random pixels blended in, 0..1; None chooses between 0 and 0.1.

    Returns:
        The RGB picture and where each thing is on it.
    """
    picture, inks = background(rng, [thing.colour for thing in things], size)
    drawn = [draw_thing(picture, thing, ink) for thing, ink in zip(things, inks, strict=True)]
    amount = rng.uniform(0, 0.1) if noise is None else noise
    if amount:
        grain = Image.frombytes("RGB", picture.size, rng.randbytes(3 * size * size))
        picture = Image.blend(picture, grain, amount)
    return picture, drawn


def draw_thing(picture: Image.Image, thing: Thing, ink: Colour) -> DrawnThing:
    """Draw a thing onto a picture, and measure where it is."""
    size = picture.width
    mask = _word_mask(thing, size) if thing.word else _shape_mask(thing, size)
    left = min(_pixels(thing.x, size), size - mask.width)
    top = min(_pixels(thing.y, size), size - mask.height)
    picture.paste(ink, (left, top), mask)
    covered = mask.point(_HALF)
    x1, y1, x2, y2 = covered.getbbox() or (0, 0, *mask.size)
    box = (
        (left + x1) / size,
        (top + y1) / size,
        (left + x2) / size,
        (top + y2) / size,
    )
    return DrawnThing(thing, box, () if thing.word else _outline(thing, left, top, size))


def _pixels(units: int, size: int) -> int:
    """A length in pixels, on a picture with sides of `size` pixels."""
    return round(units * size / SIDE)


_HALF = [0] * 128 + [255] * 128  # a pixel belongs to a thing when at least half of it is covered


def _clash(a: Thing, b: Thing) -> bool:
    """Whether two things touch, or are called the same."""
    if a.name == b.name:
        return True
    across = _overlap(a.x, a.width, b.x, b.width)
    down = _overlap(a.y, a.height, b.y, b.height)
    return across and down


def _overlap(start: int, length: int, other_start: int, other_length: int) -> bool:
    """Whether two stretches of one axis overlap, or come nearer than the gap."""
    end = start + length + GAP
    other_end = other_start + other_length + GAP
    return start < other_end and other_start < end


def _some_shape(rng: Random, number: int) -> Thing:
    name = rng.choice(_SHAPE_NAMES)
    colour = rng.choice(_COLOUR_NAMES)
    shape = SHAPES[name]
    width = rng.randint(9, _WIDEST[number - 1])
    height = width
    if shape.stretch > 1:
        factor = shape.stretch ** rng.uniform(-1, 1)
        height = max(6, min(44, round(width * factor)))
    degrees = 0
    if shape.tilt > 90 or rng.random() < 0.4:
        degrees = rng.randint(-shape.tilt, shape.tilt)
    x = rng.randint(0, SIDE - width)
    y = rng.randint(0, SIDE - height)
    return Thing(name, colour, "", x, y, width, height, degrees)


def _some_word(rng: Random, number: int) -> Thing:
    word = str(rng.randint(10, 999)) if rng.random() < 0.15 else rng.choice(WORDS)
    change_case = rng.choice((str.lower, str.upper, str.capitalize))
    word = change_case(word)
    letters = rng.randint(11, _TALLEST[number - 1])
    width, height = _ink_size(word, letters)
    while width > SIDE - 2:
        letters -= 1
        width, height = _ink_size(word, letters)
    x = rng.randint(0, SIDE - width)
    y = rng.randint(0, SIDE - height)
    colour = rng.choice(_COLOUR_NAMES)
    return Thing("word", colour, word, x, y, width, height, letters)


_SHAPE_NAMES = tuple(SHAPES)
_COLOUR_NAMES = tuple(SHADES)
_WIDEST = (40, 30, 24, 20)
"""The width of a shape at most, where there are one, two, three or four things."""
_TALLEST = (24, 20, 16, 14)
"""The height of letters at most, likewise."""


@lru_cache(maxsize=256)
def _font(pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _ink_size(word: str, letters: float) -> tuple[int, int]:
    left, top, right, bottom = _font(letters).getbbox(word)
    return math.ceil(right - left), math.ceil(bottom - top)


def _word_mask(thing: Thing, size: int) -> Image.Image:
    pixels = thing.turn * size / SIDE
    font = _font(pixels)
    left, top, _, _ = font.getbbox(thing.word)
    mask = Image.new("L", _ink_size(thing.word, pixels))
    ImageDraw.Draw(mask).text((-left, -top), thing.word, fill=255, font=font)
    return mask


def _shape_mask(thing: Thing, size: int) -> Image.Image:
    """How much of each pixel of its cell the shape covers, 0..255; drawn at four times the size."""
    (width, height), outline, hole = _fine_shape(thing, size)
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    pen.polygon(outline, fill=255)
    if hole:
        pen.polygon(hole, fill=0)
    return mask.reduce(FINE)


def _fine_shape(thing: Thing, size: int) -> tuple[tuple[int, int], list[Point], list[Point] | None]:
    """The width and the height of a shape's cell in fine pixels, its outline there, and that of its hole."""
    shape = SHAPES[thing.shape]
    width = max(2, _pixels(thing.width, size)) * FINE
    height = max(2, _pixels(thing.height, size)) * FINE
    outline = turned(shape.outline, width, height, thing.turn)
    scale = fit(outline, width, height)
    hole = shape.hole and moved(turned(shape.hole, width, height, thing.turn), *scale)
    return (width, height), moved(outline, *scale), hole


def _outline(thing: Thing, left: int, top: int, size: int) -> tuple[float, ...]:
    """The outline of a shape whose cell begins at a pixel, in fractions of the picture."""
    _, outline, hole = _fine_shape(thing, size)
    numbers = []
    for x, y in with_hole(outline, hole):
        across, down = (left + (x + 0.5) / FINE) / size, (top + (y + 0.5) / FINE) / size
        numbers += [min(max(across, 0.0), 1.0), min(max(down, 0.0), 1.0)]
    return tuple(numbers)
