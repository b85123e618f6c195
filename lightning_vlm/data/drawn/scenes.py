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

from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES, WORDS, Colour, Point

SIDE = 64
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
        return f'word "{self.word}"' if self.word else f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing as it was drawn: `box` is (x1, y1, x2, y2) in fractions of the picture, around its pixels."""

    thing: Thing
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> Point:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def place(self) -> str:
        """Where it is, in words: `top left`, `left`, `centre`, ..."""
        x, y = self.centre
        across = "left" if x < 0.36 else "right" if x > 0.64 else ""
        down = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
        return " ".join(filter(None, (down, across))) or "centre"


def belongs_to(layout: tuple[Thing, ...]) -> str:
    """The one split that may show these things at these places, whatever the seed, sizes and shades.

    A tenth of all layouts is kept for `val`, a tenth for `test`. So no picture of one split, from any seed,
    can show what a picture of another split shows.
    """
    key = ";".join(sorted(f"{thing.name},{thing.colour},{thing.x},{thing.y}" for thing in layout))
    return {0: "val", 1: "test"}.get(zlib.crc32(key.encode()) % 10, "train")


def layout(rng: Random, split: str, word_chance: float, most: int = 4) -> tuple[Thing, ...]:
    """Decide what is on a picture and where: one to `most` things that don't touch, no two alike."""
    while True:
        number = min(rng.choice(HOW_MANY), most)
        words = rng.choice((1, 1, 1, min(2, number))) if rng.random() < word_chance else 0
        things: list[Thing] = []
        for index in range(number):
            make = _some_word if index < words else _some_shape
            for _ in range(12):
                thing = make(rng, number)
                if not any(_clash(thing, other) for other in things):
                    things.append(thing)
                    break
        if things and belongs_to(tuple(things)) == split:
            return tuple(things)


def draw(
    rng: Random, things: tuple[Thing, ...], size: int, noise: float | None = None
) -> tuple[Image.Image, list[Seen]]:
    """Draw things on a background of its own.

    Args:
        rng: Chooses shades, background and noise.
        things: What to draw. They may not overlap.
        size: The picture's side in pixels.
        noise: Share of random pixels blended in, 0..1; None chooses between 0 and 0.1.
    Returns:
        The RGB picture and where each thing is on it.
    """
    picture, inks = _background(rng, [thing.colour for thing in things], size)
    seen = []
    for thing, ink in zip(things, inks, strict=True):
        mask = _word_mask(thing, size) if thing.word else _shape_mask(thing, size)
        left = min(round(thing.x * size / SIDE), size - mask.width)
        top = min(round(thing.y * size / SIDE), size - mask.height)
        picture.paste(ink, (left, top), mask)
        x1, y1, x2, y2 = mask.point(_HALF).getbbox() or (0, 0, *mask.size)
        box = ((left + x1) / size, (top + y1) / size, (left + x2) / size, (top + y2) / size)
        seen.append(Seen(thing, box))
    amount = rng.uniform(0, 0.1) if noise is None else noise
    if amount:
        grain = Image.frombytes("RGB", picture.size, rng.randbytes(3 * size * size))
        picture = Image.blend(picture, grain, amount)
    return picture, seen


_HALF = [0] * 128 + [255] * 128  # a pixel belongs to a thing when at least half of it is covered


def _clash(a: Thing, b: Thing) -> bool:
    apart_across = a.x + a.width + GAP <= b.x or b.x + b.width + GAP <= a.x
    apart_down = a.y + a.height + GAP <= b.y or b.y + b.height + GAP <= a.y
    return not (apart_across or apart_down) or a.name == b.name


def _some_shape(rng: Random, number: int) -> Thing:
    name, colour = rng.choice(_SHAPE_NAMES), rng.choice(_COLOUR_NAMES)
    shape = SHAPES[name]
    width = rng.randint(9, (40, 30, 24, 20)[number - 1])
    height = width
    if shape.stretch > 1:
        height = max(6, min(44, round(width * shape.stretch ** rng.uniform(-1, 1))))
    turn = rng.randint(-shape.tilt, shape.tilt) if shape.tilt > 90 or rng.random() < 0.4 else 0
    x, y = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
    return Thing(name, colour, "", x, y, width, height, turn)


def _some_word(rng: Random, number: int) -> Thing:
    word = str(rng.randint(10, 999)) if rng.random() < 0.15 else rng.choice(WORDS)
    word = rng.choice((str.lower, str.upper, str.capitalize))(word)
    letters = rng.randint(11, (24, 20, 16, 14)[number - 1])
    width, height = _ink_size(word, letters)
    while width > SIDE - 2:
        letters -= 1
        width, height = _ink_size(word, letters)
    x, y = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
    return Thing("word", rng.choice(_COLOUR_NAMES), word, x, y, width, height, letters)


_SHAPE_NAMES, _COLOUR_NAMES = tuple(SHAPES), tuple(SHADES)


@lru_cache(maxsize=256)
def _font(pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _ink_size(word: str, letters: int) -> tuple[int, int]:
    left, top, right, bottom = _font(letters).getbbox(word)
    return math.ceil(right - left), math.ceil(bottom - top)


def _word_mask(thing: Thing, size: int) -> Image.Image:
    font = _font(thing.turn * size / SIDE)
    left, top, right, bottom = font.getbbox(thing.word)
    mask = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), thing.word, fill=255, font=font)
    return mask


def _shape_mask(thing: Thing, size: int) -> Image.Image:
    """How much of each pixel of its cell the shape covers, 0..255; drawn at four times the size."""
    shape, fine = SHAPES[thing.shape], 4
    width = max(2, round(thing.width * size / SIDE)) * fine
    height = max(2, round(thing.height * size / SIDE)) * fine
    fit = _fit(shape.outline, width, height, thing.turn)
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    pen.polygon(fit(shape.outline), fill=255)
    if shape.hole:
        pen.polygon(fit(shape.hole), fill=0)
    return mask.reduce(fine)


def _fit(outline: list[Point], width: int, height: int, degrees: int) -> Callable[[list[Point]], list[Point]]:
    """How to stretch, turn and shrink points so that the outline just fills the cell in one direction."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def turned(points: list[Point]) -> list[Point]:
        return [(x * width * cos - y * height * sin, x * width * sin + y * height * cos) for x, y in points]

    xs, ys = zip(*turned(outline), strict=True)
    scale = min((width - 1) / (max(xs) - min(xs)), (height - 1) / (max(ys) - min(ys)))
    across = (width - 1 - scale * (max(xs) + min(xs))) / 2
    down = (height - 1 - scale * (max(ys) + min(ys))) / 2
    return lambda points: [(scale * x + across, scale * y + down) for x, y in turned(points)]


def _background(rng: Random, colours: list[str], size: int) -> tuple[Image.Image, list[Colour]]:
    """A flat, graded or striped ground, and a shade for each colour that stands out from all of it."""
    while True:
        low, high = rng.choice(((205, 255), (205, 255), (150, 235), (0, 70), (40, 160)))
        ground = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
        red, green, blue = (max(0, min(255, channel + rng.randint(-40, 40))) for channel in ground)
        other = (red, green, blue)
        inks = [_shade(rng, colour) for colour in colours]
        if all(_contrast(ink, ground) > 130 and _contrast(ink, other) > 130 for ink in inks):
            break
    picture = Image.new("RGB", (size, size), ground)
    style = rng.choice(("flat", "flat", "graded", "striped"))
    if style != "flat":
        second = Image.new("RGB", (size, size), other)
        blend = _graded(size) if style == "graded" else _striped(size, rng.randint(3, 12))
        if rng.random() < 0.5:
            blend = blend.transpose(Image.Transpose.TRANSPOSE)
        picture.paste(second, (0, 0), blend)
    return picture, inks


@lru_cache(maxsize=16)
def _graded(size: int) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size))


@lru_cache(maxsize=64)
def _striped(size: int, width: int) -> Image.Image:
    rows = bytes(255 * ((row * SIDE // (size * width)) % 2) for row in range(size) for _ in range(size))
    return Image.frombytes("L", (size, size), rows)


def _shade(rng: Random, colour: str) -> Colour:
    dark, light = SHADES[colour]
    if colour in ("gray", "black", "white"):
        level = rng.randint(dark[0], light[0])
        return level, level, level
    red, green, blue = (rng.randint(a, b) for a, b in zip(dark, light, strict=True))
    return red, green, blue


def _contrast(a: Colour, b: Colour) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
