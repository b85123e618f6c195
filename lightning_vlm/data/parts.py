"""The parts of a turn: words, pictures, videos, what lies in them; and what is checked of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
MAX_WEIGHT = 1e6
"""The largest weight of a sample or a turn: far larger ones overflow the sums, which are float32."""
MOST_MEDIA = 4096
"""The most pictures and videos of a sample; each has a token at least, and most have hundreds."""


@dataclass(frozen=True, slots=True)
class Text:
    """Some words. `entity` marks a key entity of an answer, which may weigh more in the loss."""

    text: str
    entity: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: a path below the reader's image root, the file's bytes, or a URL. Exactly one of them."""

    path: Path | None = None
    data: bytes | None = None
    root: Path | None = None
    """Where `path` must lie. Nothing outside it is ever opened."""
    url: str | None = None
    """Where it is fetched from. Readers only set it where `allow_urls` is true."""
    private: bool = False
    """Whether `url` may lead to this machine or into a private network."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video: a path below the reader's image root, bytes of a file, a URL, or frames. Exactly one of them.

    A path is that of a file, or of a folder whose pictures are the frames.
    """

    path: Path | None = None
    data: bytes | None = None
    root: Path | None = None
    """Where `path` must lie. Nothing outside it is ever opened."""
    url: str | None = None
    """Where it is fetched from. Readers only set it where `allow_urls` is true."""
    frames: tuple[Image, ...] = ()
    """The pictures that it is made of, in order."""
    fps: float | None = None
    """How many frames there are in a second, for a folder or for `frames`. A file says it itself."""
    sampling: VideoSampling | None = None
    """What its row says of how it is sampled; it goes before `data.video`."""
    private: bool = False
    """Whether `url` may lead to this machine or into a private network."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box (x1, y1, x2, y2) in an upright picture as it came, before any resizing.

    In an answer it is what the model should point at; in a question it is the region that is asked about.
    Boxes, points and regions that follow each other directly are written as one list.

    Args:
        xyxy: Fractions 0..1 of the picture's width and height, or pixels.
        label: What is in it.
        image: Which picture of the conversation it lies in, in reading order from 0; None is the last one
            before it, or else the first.
        pixels: Whether the numbers are pixels.
    """

    xyxy: tuple[float, float, float, float]
    label: str | None = None
    image: int | None = None
    pixels: bool = False

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its numbers, x and y in turn."""
        return self.xyxy

    def __str__(self) -> str:
        """The box as the model reads and writes it: whole thousandths, as Qwen2-VL and Qwen3-VL do.

        >>> str(Box((0.125, 0.25, 0.5, 1.0)))
        '[125, 250, 500, 1000]'
        """
        thousandths = [round(1000 * value) for value in self.xyxy]
        return str(thousandths)


@dataclass(frozen=True, slots=True)
class Point:
    """A point (x, y) in a picture; all else is as of a `Box`."""

    xy: tuple[float, float]
    label: str | None = None
    image: int | None = None
    pixels: bool = False

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its numbers, x and y in turn."""
        return self.xy


@dataclass(frozen=True, slots=True)
class Region:
    """An area of a picture within an outline x1, y1, x2, y2, ... of three points or more; else as a `Box`."""

    outline: tuple[float, ...]
    label: str | None = None
    image: int | None = None
    pixels: bool = False

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its numbers, x and y in turn."""
        return self.outline


@dataclass(frozen=True, slots=True)
class Nothing:
    """Stands where boxes would stand: what was asked for isn't in the picture.

    Each family writes it as it writes that it found no boxes.
    """


Located: TypeAlias = Box | Point | Region
"""What lies at a place in a picture."""
Part: TypeAlias = Text | Image | Video | Located | Nothing


def check_weight(weight: float, source: str, key: str) -> None:
    """Raise unless a weight is finite, at least 0 and at most `MAX_WEIGHT`."""
    if not (math.isfinite(weight) and weight >= 0):
        raise DataError(source, key, str(weight), "a finite number >= 0")
    if weight > MAX_WEIGHT:
        expected = f"at most {MAX_WEIGHT:,.0f}: sums of weights are kept in float32"
        raise DataError(source, key, str(weight), expected)


def check_number_of_media(number: int, source: str) -> None:
    """Raise if a sample has more pictures and videos than any could be learned with."""
    if number > MOST_MEDIA:
        found = f"{number:,} pictures and videos in one sample"
        raise DataError(source, "messages", found, f"at most {MOST_MEDIA:,}; divide the sample")


def check_part(part: Part, role: Role, source: str, key: str) -> None:
    """Raise if a part is wrong, or can't stand in a turn of this role."""
    if isinstance(part, Image):
        _check_file("picture", (part.path, part.data, part.url), role, source, key)
    elif isinstance(part, Video):
        _check_file("video", (part.path, part.data, part.url, part.frames or None), role, source, key)
        if part.fps is not None and not 0 < part.fps < math.inf:
            raise DataError(source, f"{key}.fps", str(part.fps), "frames a second, a finite number above 0")
    elif isinstance(part, Box | Point | Region):
        _check_located(part, source, key)


def _check_located(part: Located, source: str, key: str) -> None:
    """Raise unless its numbers lie in a picture, as far as that is known without its size."""
    found = f"the {type(part).__name__.lower()} {list(part.numbers)}"
    most = math.inf if part.pixels else 1
    unit = "pixels of the picture" if part.pixels else "between 0 and 1"
    fix = "" if part.pixels else " (divide pixels by the picture's width and height)"
    in_range = all(0 <= value <= most and math.isfinite(value) for value in part.numbers)
    if isinstance(part, Box):
        x1, y1, x2, y2 = part.xyxy
        if not (in_range and x1 <= x2 and y1 <= y2):
            raise DataError(source, key, found, f"x1 <= x2 and y1 <= y2, all {unit}{fix}")
    elif not in_range:
        raise DataError(source, key, found, f"numbers that are all {unit}{fix}")
    if isinstance(part, Region) and (len(part.outline) < 6 or len(part.outline) % 2):
        raise DataError(source, key, found, "x and y of three points or more")
    if part.image is not None and part.image < 0:
        raise DataError(source, f"{key}.image", str(part.image), "the number of a picture, from 0")


def _check_file(what: str, given: Sequence[object], role: Role, source: str, key: str) -> None:
    """Raise unless a picture or a video is given in one way, and stands where the model doesn't answer."""
    if role == "assistant":
        expected = f"{what}s in user or system turns only"
        raise DataError(source, key, f"a {what} in an assistant turn", expected)
    if sum(value is not None for value in given) != 1:
        found = f"a {what} with both path and bytes (or a URL), or neither"
        raise DataError(source, key, found, "exactly one of them")
