"""The parts of a turn: words, pictures, videos, boxes; and what is checked of them."""

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


@dataclass(frozen=True, slots=True)
class Box:
    """A box (x1, y1, x2, y2) as fractions 0..1 of a picture's width and height: resizing leaves it true.

    In an answer it is what the model should point at; in a question it is the region that is asked about.
    """

    xyxy: tuple[float, float, float, float]

    def __str__(self) -> str:
        """The box as the model reads and writes it: whole thousandths, as Qwen2-VL and Qwen3-VL do.

        >>> str(Box((0.125, 0.25, 0.5, 1.0)))
        '[125, 250, 500, 1000]'
        """
        thousandths = [round(1000 * value) for value in self.xyxy]
        return str(thousandths)


Part: TypeAlias = Text | Image | Video | Box


def check_weight(weight: float, source: str, key: str) -> None:
    """Raise unless a weight is finite, at least 0 and at most `MAX_WEIGHT`."""
    if not (math.isfinite(weight) and weight >= 0):
        raise DataError(source, key, str(weight), "a finite number >= 0")
    if weight > MAX_WEIGHT:
        expected = f"at most {MAX_WEIGHT:,.0f}: sums of weights are kept in float32"
        raise DataError(source, key, str(weight), expected)


def check_part(part: Part, role: Role, source: str, key: str) -> None:
    """Raise if a part is wrong, or can't stand in a turn of this role."""
    if isinstance(part, Image):
        _check_file("picture", (part.path, part.data, part.url), role, source, key)
    elif isinstance(part, Video):
        _check_file("video", (part.path, part.data, part.url, part.frames or None), role, source, key)
        if part.fps is not None and not 0 < part.fps < math.inf:
            raise DataError(source, f"{key}.fps", str(part.fps), "frames a second, a finite number above 0")
    elif isinstance(part, Box):
        x1, y1, x2, y2 = part.xyxy
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            expected = (
                "x1 <= x2 and y1 <= y2, all between 0 and 1 (divide pixels by the picture's width and height)"
            )
            raise DataError(source, key, f"the box {list(part.xyxy)}", expected)


def _check_file(what: str, given: Sequence[object], role: Role, source: str, key: str) -> None:
    """Raise unless a picture or a video is given in one way, and stands where the model doesn't answer."""
    if role == "assistant":
        expected = f"{what}s in user or system turns only"
        raise DataError(source, key, f"a {what} in an assistant turn", expected)
    if sum(value is not None for value in given) != 1:
        found = f"a {what} with both path and bytes (or a URL), or neither"
        raise DataError(source, key, found, "exactly one of them")
