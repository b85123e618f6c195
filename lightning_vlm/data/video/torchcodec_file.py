"""Video files by torchcodec, which turns them upright itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from lightning_vlm.data.video.broken import VideoFileError

_STARTS = (
    *((4, name) for name in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")),
    *(
        (0, magic)
        for magic in (b"\x1a\x45\xdf\xa3", b"RIFF", b"OggS", b"FLV", b"GIF8", b"\0\0\1\xba", b"\x47")
    ),
)
"""How containers begin, and where. FFmpeg would open playlists too, which name further files or addresses."""


@dataclass(frozen=True)
class Measures:
    """A video as torchcodec sees it.

    Args:
        frames: How many there are.
        fps: How many a second.
        upright_size: Height and width as they are shown.
    """

    frames: int
    fps: float
    upright_size: tuple[int, int]


def measure(file: BinaryIO) -> Measures:
    """How many frames a video has and how large they are, without decoding them.

    Raises:
        VideoFileError: It can't be decoded, or has no frames.
    """
    said = _decoder(file).metadata
    rates = (said.average_fps_from_header, said.average_fps)
    fps = next((rate for rate in rates if rate), None)
    if not said.num_frames:
        raise VideoFileError("a video without frames", "at least one frame")
    if fps is None:
        raise VideoFileError("a video whose frames a second are unknown", "a file that says them")
    return Measures(said.num_frames, fps, (said.height, said.width))


def decode(file: BinaryIO, measures: Measures, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Some frames: those that are shown at the times `wanted / fps`.

    Args:
        file: The file.
        measures: As from `measure`.
        wanted: Numbers of frames, ascending.

    Returns:
        Arrays of shape [height, width, 3], uint8.

    Raises:
        VideoFileError: The file is broken where a wanted frame lies.
    """
    decoder = _decoder(file)
    start = decoder.metadata.begin_stream_seconds
    for place in wanted:
        try:  # a thousandth later, as containers round times
            yield decoder.get_frame_played_at(start + place / measures.fps + 1e-3).data.numpy()
        except (RuntimeError, IndexError, ValueError) as error:
            raise _broken(error) from error


def _decoder(file: Any) -> Any:
    from torchcodec.decoders import VideoDecoder

    file.seek(0)
    start = file.read(16)
    file.seek(0)
    if not any(start[at:].startswith(magic) for at, magic in _STARTS):
        raise VideoFileError("a file that is no video", "a video file such as MP4, WebM, MKV or AVI")
    try:
        return VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> VideoFileError:
    first_line = str(error).strip().partition("\n")[0][:200]
    return VideoFileError(f"a file that can't be decoded ({first_line})")
