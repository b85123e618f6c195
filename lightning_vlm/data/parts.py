"""The parts of a turn: words, pictures, boxes; and what is checked of them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

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


Part: TypeAlias = Text | Image | Box


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
        _check_image(part, role, source, key)
    elif isinstance(part, Box):
        x1, y1, x2, y2 = part.xyxy
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            expected = (
                "x1 <= x2 and y1 <= y2, all between 0 and 1 (divide pixels by the picture's width and height)"
            )
            raise DataError(source, key, f"the box {list(part.xyxy)}", expected)


def _check_image(image: Image, role: Role, source: str, key: str) -> None:
    if role == "assistant":
        expected = "pictures in user or system turns only"
        raise DataError(source, key, "a picture in an assistant turn", expected)
    given = [value for value in (image.path, image.data, image.url) if value is not None]
    if len(given) != 1:
        found = "a picture with both path and bytes (or a URL), or neither"
        raise DataError(source, key, found, "exactly one of them")
