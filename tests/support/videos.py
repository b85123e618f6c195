"""Videos for tests: each frame shows its own number, so that pixels tell which frames were chosen."""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image

from lightning_vlm.data.conversation import Image

BITS = 17
"""So many bits write the number of a frame: up to 131,072 frames."""


def numbered(number: int, width: int = 80, height: int = 48) -> np.ndarray:
    """A frame that shows a number: a column for each bit, white in the upper half or in the lower one.

    So it survives compression and any size, and what is turned or mirrored isn't read as the same number.
    """
    frame = np.zeros((height, width, 3), np.uint8)
    edges = [place * width // (BITS + 1) for place in range(BITS + 2)]
    frame[:, : edges[1]] = (255, 0, 0)  # a red edge on the left
    for bit in range(BITS):
        columns = slice(edges[bit + 1], edges[bit + 2])
        is_upper = number >> bit & 1
        rows = slice(0, height // 2) if is_upper else slice(height // 2, height)
        frame[rows, columns] = 255
    return frame


def number_on(frame: Any) -> int:
    """The number that a frame shows.

    Args:
        frame: Of shape [3, height, width].
    """
    red, green, blue = (np.asarray(channel, np.float32) for channel in frame)
    height, width = red.shape
    left = slice(0, max(1, width // (BITS + 1) - 1))
    assert red[:, left].mean() > 150 > 100 > blue[:, left].mean(), "no red edge on the left: it is turned"
    grey = (red + green + blue) / 3
    number = 0
    for bit in range(BITS):
        middle = int((bit + 1.5) * width / (BITS + 1))
        upper = grey[height // 4, middle]
        lower = grey[height * 3 // 4, middle]
        assert abs(upper - lower) > 60, "the number can't be read"
        number |= int(upper > lower) << bit
    return number


def numbers_of(frames: Any) -> list[int]:
    """The numbers that the frames of a clip show."""
    return [number_on(frame) for frame in frames]


def write_numbered(
    file: Any,
    frames: int = 50,
    fps: float | Fraction = 25,
    size: tuple[int, int] = (80, 48),
    codec: str = "libx264",
    container: str | None = None,
    gop: int = 12,
    times: Sequence[float] | None = None,
    rotation: int = 0,
    stored: Callable[[np.ndarray], np.ndarray] = np.asarray,
    sound: bool = False,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
) -> None:
    """Write a video whose n-th frame shows n.

    Args:
        file: A path, or a file in memory with `container`.
        frames: How many.
        fps: A second.
        size: Width and height, as it is shown.
        codec: Of FFmpeg.
        container: Of a file in memory.
        gop: Frames from one keyframe to the next.
        times: When each frame is shown, in seconds; None is evenly.
        rotation: Degrees to the left by which players turn it.
        stored: How a frame is stored, so that it is upright once it is turned.
        sound: Whether there is a sound too.
        options: Of the codec.
        pixels: The format of pixels.
    """
    rate = Fraction(fps).limit_denominator(10_000)
    with av.open(file if not isinstance(file, Path) else str(file), "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, _ = stored(numbered(0, *size)).shape
        stream.pix_fmt = pixels
        stream.gop_size = gop
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        tone: Any = output.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(frames):
            picture = stored(numbered(number, *size))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = 1 / rate if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone is not None:
            output.mux(tone.encode(_silence()))
            output.mux(tone.encode(None))


def write_sound(path: Path) -> None:
    """Write a file with a sound and no video."""
    with av.open(str(path), "w") as output:
        tone: Any = output.add_stream("aac", rate=16_000, layout="mono")
        output.mux(tone.encode(_silence()))
        output.mux(tone.encode(None))


def _silence() -> av.AudioFrame:
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
    sound.sample_rate = 16_000
    sound.pts = 0
    return sound


def numbered_pictures(frames: int, width: int = 80, height: int = 48) -> tuple[Image, ...]:
    """Frames as pictures in memory."""
    pictures = []
    for number in range(frames):
        file = io.BytesIO()
        PIL.Image.fromarray(numbered(number, width, height)).save(file, "PNG")
        pictures.append(Image(data=file.getvalue()))
    return tuple(pictures)


def repeat(path: Path, longer: Path, times: int) -> None:
    """Write a video that shows another several times, without encoding it again."""
    with av.open(str(path)) as one, av.open(str(longer), "w") as output:
        stream: Any = output.add_stream_from_template(one.streams.video[0])
        packets: list[Any] = [packet for packet in one.demux(video=0) if packet.dts is not None]
        length = sum(packet.duration for packet in packets)
        for _ in range(times):
            for packet in packets:
                packet.stream = stream
                output.mux(packet)
                packet.time_base = one.streams.video[0].time_base
                packet.pts += length
                packet.dts += length
