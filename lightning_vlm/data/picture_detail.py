"""Fewer tokens for pictures with little detail: how many pixels a picture needs, measured on itself."""

import math
from collections.abc import Iterator

import numpy as np
import PIL.Image
from PIL.Image import Resampling

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import load_image

TOLERANCE = 6.0
"""The root mean square of what is lost, in grey levels of 0 to 255: 32 decibels below white."""
_AS_IT_CAME = "size_as_it_came"


def pixels_needed(picture: PIL.Image.Image, least: int, most: int, tolerance: float = TOLERANCE) -> int:
    """How many pixels a picture needs so that hardly anything of it is lost.

    It is made smaller and enlarged again. The answer is the smallest of least, 2·least, 4·least, ... from
    which its brightness comes back within the tolerance, or else `most`.

    Args:
        picture: In mode RGB.
        least: Pixels to begin with.
        most: Pixels that always do.
        tolerance: The root mean square error that is taken, in grey levels.

    >>> flat = PIL.Image.new("RGB", (640, 480), "teal")
    >>> pixels_needed(flat, 1024, 65536)
    1024
    >>> noise = PIL.Image.effect_noise((640, 480), 80).convert("RGB")
    >>> pixels_needed(noise, 1024, 65536)
    65536
    """
    whole = _resized(picture.convert("L"), most)
    exact = np.asarray(whole, np.float32)
    for pixels in _budgets(least, min(most, whole.width * whole.height)):
        again = _resized(whole, pixels).resize(whole.size, Resampling.BICUBIC)
        lost = np.asarray(again, np.float32) - exact
        if float(np.square(lost).mean()) <= tolerance**2:
            return pixels
    return most


def shrunk_to_detail(picture: PIL.Image.Image, least: int, most: int) -> PIL.Image.Image:
    """A picture with as many pixels as it needs, between two bounds; never enlarged.

    Use it in front of a processor where a model is served that was trained with `data.pixels_by_detail`.

    >>> shrunk_to_detail(PIL.Image.new("RGB", (640, 480), "teal"), 1024, 65536).size
    (36, 27)
    """
    smaller = _resized(picture, pixels_needed(picture, least, most))
    smaller.info[_AS_IT_CAME] = picture.size
    return smaller


def open_shrunk(image: Image, source: str, key: str, least: int, most: int) -> PIL.Image.Image:
    """Stands in for `load_image`; the other arguments are as of `shrunk_to_detail`."""
    return shrunk_to_detail(load_image(image, source, key), least, most)


def size_as_it_came(picture: PIL.Image.Image) -> tuple[int, int]:
    """The width and height of a picture before `shrunk_to_detail`, in which its boxes are given."""
    return picture.info.get(_AS_IT_CAME, picture.size)


def _budgets(least: int, most: int) -> Iterator[int]:
    while least < most:
        yield least
        least *= 2


def _resized(picture: PIL.Image.Image, pixels: int) -> PIL.Image.Image:
    """A picture of at most so many pixels; as it is where it has no more."""
    scale = math.sqrt(pixels / (picture.width * picture.height))
    if scale >= 1:
        return picture.copy()
    sides = [max(1, int(side * scale)) for side in picture.size]
    return picture.resize((sides[0], sides[1]), Resampling.LANCZOS)
