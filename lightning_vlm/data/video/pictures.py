"""Videos that are pictures: a folder of them, or a list."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.images import image_size, load_image
from lightning_vlm.errors import DataError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
_PLAIN_SECONDS = 'the frames a second, as {"type": "video", ..., "fps": 2.0}'


class PictureFrames:
    """The frames of a folder or of a list.

    Args:
        video: Of a folder or of a list.
        folder: The real path of the folder; None for a list.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.

    Raises:
        DataError: There are no frames, or it isn't said how many come in a second.
    """

    backend = "pictures"

    def __init__(self, video: Video, folder: Path | None, source: str, key: str) -> None:
        self._source = source
        self._key = key
        self._pictures = video.frames if folder is None else frames_in(folder, source, key)
        self._are_listed = folder is None
        if video.fps is None:
            kind = "a list of frames" if folder is None else f"a folder of {len(self._pictures)} frames"
            raise DataError(source, f"{key}.fps", f"{kind} whose time is unknown", _PLAIN_SECONDS)
        self.fps = video.fps
        self.frames = len(self._pictures)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width, read from the head of the first picture."""
        width, height = image_size(self._pictures[0], self._source, self._key_of(0))
        return height, width

    def decode(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """Some frames; each is opened when its turn comes.

        Raises:
            DataError: One can't be opened, or has another size than the first.
        """
        height, width = self.upright_size
        for place in wanted:
            key = self._key_of(place)
            picture = load_image(self._pictures[place], self._source, key)
            if picture.size != (width, height):
                found = f"a frame of {picture.width}×{picture.height} pixels"
                raise DataError(self._source, key, found, f"{width}×{height}, as the first frame has")
            yield np.asarray(picture)

    def _key_of(self, place: int) -> str:
        if self._are_listed:
            return f"{self._key}.frames[{place}]"
        return f"{self._key} ({self._pictures[place].path})"


def frames_in(folder: Path, source: str, key: str) -> tuple[Image, ...]:
    """The pictures of a folder, by the numbers in their names: `frame2.jpg` comes before `frame10.jpg`.

    Raises:
        DataError: There is none.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_picture(entry.name)]
    if not names:
        expected = "at least one picture in it: the frames, in the order of their names"
        raise DataError(source, key, f"the folder {folder.name!r} without frames", expected)
    names.sort(key=_by_number)
    return tuple(Image(Path(name), root=folder) for name in names)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts digits as the number that they are."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces]
