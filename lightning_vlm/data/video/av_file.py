"""Video files by PyAV: when each frame is shown, found without decoding, and the pixels of some of them."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import av
import numpy as np

from lightning_vlm.data.video.broken import VideoFileError
from lightning_vlm.data.video.mp4_tables import check_tables
from lightning_vlm.data.video.sizes import MOST_DECODED, MOST_FRAMES, MOST_PIXELS
from lightning_vlm.data.video.timeline import Timeline, rate_of
from lightning_vlm.data.video.upright import Turned, turned_by, upright

_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,h264,hevc,m4v,ivf,mxf,nut,apng"
"""Containers that are opened. FFmpeg knows others that name further files or addresses, such as playlists."""
_EXPECTED = "a video file such as MP4, WebM, MKV or AVI; a playlist or a picture is none"
_OFTEN = 4
"""So often a list of edits may show all of a file."""
_FAR = 2
"""So many frames are rather decoded than left out by a jump, which costs as much."""


def measure(file: BinaryIO) -> Timeline:
    """When each frame of a video is shown. Only the first frame is decoded, to see how it stands.

    Raises:
        VideoFileError: It can't be decoded, has no frames or too many, or ends before its header says.
    """
    check_tables(file)
    size = file.seek(0, 2)
    with _video(file) as (container, stream):
        packets = _Packets(are_counted=container.format.name == "avi")  # whose times are those of decoding
        for packet in container.demux(stream):
            packets.add(packet)
            if packets.size > _OFTEN * size:
                raise VideoFileError(f"a header that shows the same frames more than {_OFTEN} times")
            if packets.count > MOST_FRAMES:
                raise VideoFileError(f"a video of more than {MOST_FRAMES:,} frames", "a shorter one; cut it")
        said = stream.frames
        if not packets.count:
            raise VideoFileError("a video without frames", "at least one frame")
        if said > packets.count:
            found = f"a truncated video: {packets.count:,} of the {said:,} frames that its header names"
            raise VideoFileError(found)
        _check_length(container, stream, packets)
        packets.check_shown()
    with _video(file) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise VideoFileError("a video of which no frame can be decoded")
        turned = _turned(first)
        return packets.timeline(stream, first, turned)


def decode(file: BinaryIO, timeline: Timeline, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Some frames, upright. It jumps to keyframes where that saves decoding.

    Args:
        file: The file.
        timeline: As from `measure`.
        wanted: Their places on the grid of times, ascending.

    Returns:
        Arrays of shape [height, width, 3], uint8.

    Raises:
        VideoFileError: The file is broken where a wanted frame lies, or it takes too long to get there.
    """
    _check_work(timeline, wanted)
    with _video(file) as (container, stream):
        reader = Reader(container, stream, timeline)
        for place in wanted:
            frame = reader.frame(timeline.in_file(place))
            yield upright(frame.to_ndarray(format="rgb24"), timeline.turned)


def _check_work(timeline: Timeline, wanted: Sequence[int]) -> None:
    """Raise if far too many frames would be decoded on the way to those that are wanted."""
    at = frames = 0
    for place in map(timeline.in_file, wanted):
        frames += max(0, place + 1 - max(at, timeline.keyframe_before(place)))
        at = max(at, place + 1)
    if frames * timeline.height * timeline.width > MOST_DECODED:
        size = f"{timeline.width}×{timeline.height}"
        found = f"{frames:,} frames of {size} pixels, all of which have to be decoded"
        raise VideoFileError(found, "a smaller or shorter video, or one with more keyframes")


@contextmanager
def _video(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The opened file and its video, without sound and pictures of a cover."""
    file.seek(0)
    try:
        with av.open(file, options={"format_whitelist": _FORMATS}) as container:
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                kinds = sorted({str(stream.type) for stream in container.streams})
                found = f"a file with {' and '.join(kinds)} only" if kinds else "a file with nothing in it"
                raise VideoFileError(found, "a file with a video in it")
            stream = streams[0]
            if stream.codec_context is None:
                raise VideoFileError(
                    "a video in a codec that PyAV can't decode", "a usual one, such as H.264, VP9 or AV1"
                )
            stream.codec_context.thread_count = 1  # a worker has one core
            _limit_size(stream.codec_context)
            yield container, stream
    except VideoFileError:
        raise
    except av.ArgumentError as error:  # the container isn't one of those that are opened
        raise VideoFileError("a file that is no video", _EXPECTED) from error
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise VideoFileError(f"a file that can't be decoded ({reason})") from error


def _limit_size(decoder: Any) -> None:
    """Refuse frames that are too large before memory is taken for one, whatever the header says."""
    width, height = decoder.width or 0, decoder.height or 0
    if width * height > MOST_PIXELS:
        expected = f"at most {MOST_PIXELS:,} pixels; make them smaller"
        raise VideoFileError(f"frames of {width}×{height} pixels", expected)
    # Decoders round sizes up to whole blocks, of which a frame at the limit may have some more.
    decoder.options = {"max_pixels": str(2 * MOST_PIXELS)}


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _turned(frame: Any) -> Turned:
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return turned_by(None if matrix is None else bytes(matrix))


class _Packets:
    """What the packets of a video say of its frames, none of which is decoded."""

    def __init__(self, are_counted: bool) -> None:
        self._times = array("q")
        self._keys = array("q")
        self.count = 0
        self.size = 0
        """In bytes; a frame that is shown again counts again."""
        self.are_counted = are_counted
        """Whether times are missing or wrong, so that frames are counted instead."""
        self.end = 0

    def add(self, packet: Any) -> None:
        """The next packet, in the order of decoding."""
        if not packet.size:  # the mark of the end
            return
        self.count += 1
        self.size += packet.size
        if packet.is_discard:  # cut away by an edit
            return
        if packet.pts is None:
            self.are_counted = True
            return
        if packet.is_keyframe:
            self._keys.append(packet.pts)
        self._times.append(packet.pts)
        self.end = max(self.end, packet.pts + (packet.duration or 0))

    def check_shown(self) -> None:
        """Raise if no frame is shown, before they are decoded in search of the first."""
        if not self.are_counted and not len(self._times):
            raise VideoFileError("a video of which every frame is cut away", "at least one frame")

    def timeline(self, stream: Any, first: Any, turned: Turned) -> Timeline:
        """When each frame is shown, given the first of them decoded."""
        second = float(1 / stream.time_base)
        said = float(stream.average_rate or stream.guessed_rate or 0) or None
        if self.are_counted:
            if said is None:
                raise VideoFileError("a video whose frames a second are unknown", "a file that says them")
            zero = np.zeros(1, np.int64)
            return Timeline(self.count, said, None, True, zero, second, first.height, first.width, turned)
        times = np.unique(np.frombuffer(self._times, np.int64))
        keys = np.searchsorted(times, np.unique(np.frombuffer(self._keys, np.int64)))
        fps, is_even = rate_of(times, second, self.end - int(times[-1]), said)
        if not fps:
            raise VideoFileError("a video whose frames a second are unknown", "a file that says them")
        return Timeline(len(times), fps, times, is_even, keys, second, first.height, first.width, turned)


def _check_length(container: Any, stream: Any, packets: _Packets) -> None:
    """Raise if a file that doesn't say how many frames it has ends long before the time that it says."""
    if stream.frames or not container.duration or packets.are_counted or not packets.end:
        return
    promised = container.duration / av.time_base
    start = (container.start_time or 0) / av.time_base
    there = float(packets.end * stream.time_base) - start
    if len(container.streams) > 1 or there >= promised - max(1.0, 0.05 * promised):
        return  # another stream may be longer
    raise VideoFileError(
        f"a truncated video: {there:.1f} of the {promised:.1f} seconds that its header names"
    )


class Reader:
    """Decodes frames one after the other, and jumps forward.

    Args:
        container: The opened file.
        stream: Its video.
        timeline: As from `measure`.
    """

    def __init__(self, container: Any, stream: Any, timeline: Timeline) -> None:
        self._container = container
        self._stream = stream
        self._timeline = timeline
        self._frames: Iterator[Any] = container.decode(stream)
        self._jumps = timeline.times is not None
        self._at: tuple[int, Any] = (-1, None)
        """The place of the last frame that was decoded, and the frame."""
        self._before = self._at
        """The same of the one before it."""

    def frame(self, wanted: int) -> Any:
        """The frame at a place of the file, which isn't before that of the last call."""
        if self._jumps:
            key = self._timeline.keyframe_before(wanted)
            if key > self._at[0] + _FAR:
                self._go_to(key)
                self._advance(wanted)
                if self._at[0] > wanted:  # the container's jumps aren't exact
                    self._jumps = False
                    self._go_to(0)
        while self._at[0] < wanted:
            self._advance(wanted)
        place, frame = self._at
        if (
            place > wanted and self._before[1] is not None
        ):  # the decoder gave up one: the one before stays on show
            frame = self._before[1]
        if frame.is_corrupt:
            raise VideoFileError(f"a video that is broken at {self._seconds(wanted):.2f} s")
        return frame

    def _advance(self, wanted: int) -> None:
        """Decode the next frame."""
        frame = next(self._frames, None)
        if frame is None:
            raise VideoFileError(f"a video that ends before {self._seconds(wanted):.2f} s")
        times = self._timeline.times
        place = self._at[0] + 1
        if times is not None:
            if frame.pts is None:
                return
            place = int(np.searchsorted(times, frame.pts, side="right")) - 1
        self._before = self._at
        self._at = (place, frame)

    def _go_to(self, key: int) -> None:
        """Jump to a keyframe."""
        times = self._timeline.times
        assert times is not None
        self._container.seek(int(times[key]), stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._at = self._before = (-1, None)

    def _seconds(self, frame: int) -> float:
        times = self._timeline.times
        if times is None:
            return frame / self._timeline.fps
        return float(times[frame] - times[0]) / self._timeline.second
