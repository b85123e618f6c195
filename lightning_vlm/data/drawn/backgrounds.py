"""What is behind the things on a drawn picture, and shades for them that stand out from it."""

from functools import lru_cache
from random import Random

from PIL import Image

from lightning_vlm.data.drawn.vocabulary import SHADES, SIDE, Colour

_GROUNDS = ((205, 255), (205, 255), (150, 235), (0, 70), (40, 160))
"""Between which levels the channels of a ground lie, as often as they are named here."""
_LEAST_CONTRAST = 130
"""How far a shade must differ from the ground, summed over the channels."""


def background(rng: Random, colours: list[str], size: int) -> tuple[Image.Image, list[Colour]]:
    """A flat, graded or striped ground, and a shade for each colour that stands out from all of it."""
    while True:
        ground, other = _two_grounds(rng)
        inks = [_shade(rng, colour) for colour in colours]
        contrasts = [_contrast(ink, ground) for ink in inks]
        contrasts += [_contrast(ink, other) for ink in inks]
        if all(contrast > _LEAST_CONTRAST for contrast in contrasts):
            break
    picture = Image.new("RGB", (size, size), ground)
    style = rng.choice(("flat", "flat", "graded", "striped"))
    if style != "flat":
        blend = _graded(size) if style == "graded" else _striped(size, rng.randint(3, 12))
        if rng.random() < 0.5:
            blend = blend.transpose(Image.Transpose.TRANSPOSE)
        picture.paste(other, (0, 0), blend)
    return picture, inks


def _two_grounds(rng: Random) -> tuple[Colour, Colour]:
    """A colour, and one near it that it may blend into."""
    low, high = rng.choice(_GROUNDS)
    ground = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
    red, green, blue = ground
    return ground, (_level_near(red, rng), _level_near(green, rng), _level_near(blue, rng))


def _level_near(level: int, rng: Random) -> int:
    near = level + rng.randint(-40, 40)
    return max(0, min(255, near))


@lru_cache(maxsize=16)
def _graded(size: int) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size))


@lru_cache(maxsize=64)
def _striped(size: int, width: int) -> Image.Image:
    """Stripes of this many units, by turns black and white."""
    blend = Image.new("L", (size, size))
    for row in range(size):
        stripe = row * SIDE // (size * width)
        is_odd = stripe % 2 == 1
        if is_odd:
            blend.paste(255, (0, row, size, row + 1))
    return blend


def _shade(rng: Random, colour: str) -> Colour:
    """A shade that has the name of this colour. Gray, black and white have three equal channels."""
    dark, light = SHADES[colour]
    if colour in ("gray", "black", "white"):
        level = rng.randint(dark[0], light[0])
        return level, level, level
    red, green, blue = map(rng.randint, dark, light)  # each channel between its two limits
    return red, green, blue


def _contrast(ink: Colour, ground: Colour) -> int:
    """How far two colours differ, summed over their channels."""
    differences = [abs(channel - other) for channel, other in zip(ink, ground, strict=True)]
    return sum(differences)
