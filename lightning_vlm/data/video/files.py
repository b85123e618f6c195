"""Where a video lies, and its file as a reader of frames."""

import io
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np

from lightning_vlm.data.conversation import Video
from lightning_vlm.data.fetching import fetch
from lightning_vlm.data.files_below import find_below
from lightning_vlm.data.video.broken import WHOLE, VideoFileError
from lightning_vlm.data.video.pictures import PictureFrames
from lightning_vlm.data.video.timeline import Timeline
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import shorten

LARGEST_FETCHED = 512 << 20
"""The most bytes of a video that is fetched, or comes as bytes: it is held in memory."""
_REMEMBERED = 512
_timelines: "OrderedDict[tuple[str, int, int], Timeline]" = OrderedDict()
"""When the frames are shown of the files that this process read last."""


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
    """The frames of a video file, read by PyAV.

    torchcodec was tried on the same files: it gives other frames of AVI, MPEG-TS and MPEG-PS, takes truncated
    files for whole ones, and needs the libraries of FFmpeg, which PyAV brings along.

    Args:
        video: By path, bytes or URL.
        path: The real path of its file, if it has one.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.

    Raises:
        DataError: It isn't a video that can be decoded.
        UserError: PyAV is not installed.
    """

    backend = "pyav"

    def __init__(self, video: Video, path: Path | None, source: str, key: str) -> None:
        self._path = path
        self._source = source
        self._key = key
        self._name = _name_of(video)
        _check_no_rate(video, source, key)
        self._data = video.data or b""
        if video.url is not None:
            self._data = fetch(video.url, source, key, "video", LARGEST_FETCHED, video.private)
        self._check_not_empty()
        self._reader = _reader()
        self._timeline = self._measured()
        self.frames = self._timeline.frames
        self.fps = self._timeline.fps
        self.upright_size = self._timeline.upright_size

    def decode(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """Some frames in ascending order.

        Raises:
            DataError: The file is broken where one of them lies.
        """
        with self._opened() as file:
            try:
                yield from self._reader.decode(file, self._timeline, wanted)
            except VideoFileError as error:
                raise self._wrong(error) from error

    def _check_not_empty(self) -> None:
        size = len(self._data) if self._path is None else self._path.stat().st_size
        if not size:
            raise DataError(self._source, self._key, f"{self._name}: an empty file", WHOLE)

    def _measured(self) -> Timeline:
        """When the frames of the file are shown, which is kept for the next time."""
        if self._path is None:
            return self._measure()
        state = os.stat(self._path)
        name = (str(self._path), state.st_mtime_ns, state.st_size)
        timeline = _timelines.pop(name, None) or self._measure()
        _timelines[name] = timeline
        if len(_timelines) > _REMEMBERED:
            _timelines.popitem(last=False)
        return timeline

    def _measure(self) -> Timeline:
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


def _reader() -> ModuleType:
    """The module that reads files, which imports PyAV."""
    try:
        from lightning_vlm.data.video import av_file
    except ImportError as error:
        raise UserError(
            f"video files need PyAV ({error}); run `pip install 'lightning-vlm[video]'`. A folder or a list "
            "of frames needs nothing"
        ) from error
    return av_file


def _name_of(video: Video) -> str:
    """What errors call a video."""
    if video.data is not None:
        return f"{len(video.data)} bytes"
    return shorten(str(video.path or video.url))
