"""What happens in a drawn video: which things are on each of its frames, and what is asked about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple, TypeAlias

from PIL import Image

from lightning_vlm.data.drawn.backgrounds import background
from lightning_vlm.data.drawn.scenes import Thing, draw_thing, layout
from lightning_vlm.data.drawn.vocabulary import SIDE

LEAST_FRAMES = 4
"""Fewer frames show no motion."""
_MOST_TO_COUNT = 4
_NUMBERS = ("no", "one", "two", "three", "four")
_LEAST_WAY = 0.6
"""How far a moving thing goes at least, of the way that there is."""


class Happening(NamedTuple):
    """A short story without words.

    Args:
        frames: For each frame the things on it.
        question: What is asked about all of it; no single frame has the answer.
        answer: The right answer.
    """

    frames: list[list[Thing]]
    question: str
    answer: str


Happen: TypeAlias = Callable[[Random, str, int], Happening]


def _direction(rng: Random, split: str, frames: int) -> Happening:
    """A thing moves across, in one of four directions."""
    (thing,) = layout(rng, split, word_chance=0, most=1)
    answer = rng.choice(("left", "right", "up", "down"))
    is_level = answer in ("left", "right")
    room = SIDE - (thing.width if is_level else thing.height)
    way = rng.uniform(_LEAST_WAY, 1) * room
    start = rng.uniform(0, room - way)
    places = [round(start + way * number / (frames - 1)) for number in range(frames)]
    if answer in ("left", "up"):
        places.reverse()
    moved = [[replace(thing, x=place) if is_level else replace(thing, y=place)] for place in places]
    return Happening(moved, rng.choice(_WHICH_WAY).format(thing.name), answer)


_WHICH_WAY = (
    "Which way does the {} move?",
    "In which direction does the {} go?",
    "Where does the {} move to?",
)


def _when(rng: Random, split: str, frames: int) -> Happening:
    """A thing is there for one half of the video, the first or the second."""
    things = layout(rng, split, word_chance=0, most=2)
    thing = things[0]
    is_first = rng.random() < 0.5
    half = frames // 2
    with_it, without_it = list(things), list(things[1:])
    shown = [with_it if (number < half) == is_first else without_it for number in range(frames)]
    answer = "first" if is_first else "second"
    return Happening(shown, rng.choice(_ASK_WHEN).format(thing.name), answer)


_ASK_WHEN = (
    "In which half of the video is the {} there?",
    "In which half can the {} be seen?",
    "Which half of the video shows the {}?",
)


def _count(rng: Random, split: str, frames: int) -> Happening:
    """Things come one after the other, and none is seen together with another."""
    number = rng.randint(1, min(_MOST_TO_COUNT, frames))
    things: list[Thing] = []
    while len(things) < number:
        (thing,) = layout(rng, split, word_chance=0, most=1)
        if thing.name not in [other.name for other in things]:
            things.append(thing)
    shown = [[things[place * number // frames]] for place in range(frames)]
    return Happening(shown, rng.choice(_HOW_MANY), _NUMBERS[number])


_HOW_MANY = (
    "How many different things appear in the video?",
    "How many things are shown, one after the other?",
    "Count the different things in the video.",
)

HAPPEN: dict[str, Happen] = {"direction": _direction, "when": _when, "count": _count}
"""What can happen, by task."""


def draw_frames(rng: Random, frames: Sequence[Sequence[Thing]], size: int) -> list[Image.Image]:
    """Draw each frame on the same background, each thing in the same shade.

    Args:
        rng: Chooses both.
        frames: The things on each frame.
        size: The frames' side in pixels.
    """
    colours = list(dict.fromkeys(thing.colour for things in frames for thing in things))
    ground, inks = background(rng, colours, size)
    shades = dict(zip(colours, inks, strict=True))
    pictures = []
    for things in frames:
        picture = ground.copy()
        for thing in things:
            draw_thing(picture, thing, shades[thing.colour])
        pictures.append(picture)
    return pictures
