"""Where a video lies, and its file as a reader of frames."""

import io
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.fetching import fetch
from lightning_vlm.data.files_below import find_below
from lightning_vlm.data.video.backend import Measured, reader
from lightning_vlm.data.video.broken import WHOLE, VideoFileError
from lightning_vlm.data.video.pictures import PictureFrames
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

LARGEST_FETCHED = 512 << 20
"""The most bytes of a video that is fetched, or comes as bytes: it is held in memory."""
_REMEMBERED = 512
_measured: "OrderedDict[tuple[str, int, int, str], Measured]" = OrderedDict()
"""The measures of the files that this process read last."""


def find_video(video: Video, source: str, key: str, advise: bool = True) -> Path | None:
    """Where a video is: the real path of its file or of the folder of its frames. Looks, but does not open.

    Args:
        video: By path, by bytes, by URL or by frames.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        advise: Whether the error says what was probably meant, which takes some search.

    Returns:
        None for a video that isn't given by a path.

    Raises:
        DataError: A path that leaves the root, or nothing there.
    """
    if video.path is None:
        return None
    return find_below(video.path, video.root, source, key, "video", folder=True, advise=advise)


def check_video(video: Video, source: str, key: str, advise: bool = True) -> None:
    """Look for a video, without opening a file.

    Raises:
        DataError: Nothing is there, a folder without frames, frames without a time, or a file with one.
    """
    path = find_video(video, source, key, advise)
    if video.frames or (path is not None and path.is_dir()):
        PictureFrames(video, path, source, key)
    else:
        _check_no_rate(video, source, key)


def _check_no_rate(video: Video, source: str, key: str) -> None:
    if video.fps is not None:
        found = f"frames a second ({video.fps:g}) of a video file, which says them itself"
        expected = 'no "fps" here; how many are taken is data.video.fps, or "sampling": {"fps": ...}'
        raise DataError(source, f"{key}.fps", found, expected)


class FileFrames:
    """The frames of a video file.

    Args:
        video: By path, bytes or URL.
        path: The real path of its file, if it has one.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.

    Raises:
        DataError: It isn't a video that can be decoded.
        UserError: Nothing is installed that decodes videos.
    """

    def __init__(self, video: Video, path: Path | None, source: str, key: str) -> None:
        self._path = path
        self._source = source
        self._key = key
        self._name = _name_of(video)
        _check_no_rate(video, source, key)
        self._data = video.data or b""
        if video.url is not None:
            self._data = fetch(video.url, source, key, "video", LARGEST_FETCHED)
        self._check_not_empty()
        self.backend, self._reader = reader()
        self._measures = self._measure()
        self.frames = self._measures.frames
        self.fps = self._measures.fps
        self.upright_size = self._measures.upright_size

    def decode(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """Some frames in ascending order.

        Raises:
            DataError: The file is broken where one of them lies.
        """
        with self._opened() as file:
            try:
                yield from self._reader.decode(file, self._measures, wanted)
            except VideoFileError as error:
                raise self._wrong(error) from error

    def _check_not_empty(self) -> None:
        size = len(self._data) if self._path is None else self._path.stat().st_size
        if not size:
            raise DataError(self._source, self._key, f"{self._name}: an empty file", WHOLE)

    def _measure(self) -> Measured:
        """The measures of the file, which are kept for the next time."""
        if self._path is None:
            return self._measure_anew()
        state = os.stat(self._path)
        name = (str(self._path), state.st_mtime_ns, state.st_size, self.backend)
        measures = _measured.pop(name, None) or self._measure_anew()
        _measured[name] = measures
        if len(_measured) > _REMEMBERED:
            _measured.popitem(last=False)
        return measures

    def _measure_anew(self) -> Measured:
        with self._opened() as file:
            try:
                return self._reader.measure(file)
            except VideoFileError as error:
                raise self._wrong(error) from error

    def _opened(self) -> BinaryIO:
        if self._path is None:
            return io.BytesIO(self._data)
        try:
            return self._path.open("rb")
        except OSError as error:
            found = f"{self._name}, which can't be opened ({error.strerror})"
            raise DataError(self._source, self._key, found, "a file that may be read") from error

    def _wrong(self, error: VideoFileError) -> DataError:
        return DataError(self._source, self._key, f"{self._name}: {error.found}", error.expected)


def _name_of(video: Video) -> str:
    """What errors call a video."""
    if video.data is not None:
        return f"{len(video.data)} bytes"
    return shorten(str(video.path or video.url))
