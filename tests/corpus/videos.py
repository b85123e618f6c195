"""Videos that are broken, odd or none."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image

from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.video.load import load_video, video_shape
from lightning_vlm.data.video.sampling import VideoSampling
from tests.corpus.case import Case, Right
from tests.support.videos import numbers_of, write_numbered, write_sound

FEW = VideoSampling(num_frames=4)


def take(video: Video) -> list[int]:
    """The numbers that four frames show."""
    shape = video_shape(video, "data.jsonl:1", "video", FEW)
    clip = load_video(video, "data.jsonl:1", "video", FEW)
    assert len(clip.frames) == shape.frames
    return numbers_of(clip.frames)


def file(
    name: str = "a.mp4", change: Callable[[bytes], bytes] | None = None, **options: Any
) -> Callable[[], Video]:
    """A file of numbered frames, whose bytes may be changed."""

    def make() -> Video:
        write_numbered(Path(name), **{"frames": 20, **options})
        if change is not None:
            Path(name).write_bytes(change(Path(name).read_bytes()))
        return Video(path=Path(name), root=Path("."))

    return make


def of_bytes(data: bytes, name: str = "a.mp4") -> Callable[[], Video]:
    """A file with these bytes."""

    def make() -> Video:
        Path(name).write_bytes(data)
        return Video(path=Path(name), root=Path("."))

    return make


def sound() -> Video:
    """A file with a sound alone."""
    write_sound(Path("a.mp4"))
    return Video(path=Path("a.mp4"), root=Path("."))


def frames(*contents: bytes, fps: float | None = 1.0) -> Callable[[], Video]:
    """A folder of frames with these bytes."""

    def make() -> Video:
        Path("frames").mkdir()
        for number, data in enumerate(contents):
            Path(f"frames/{number}.png").write_bytes(data)
        return Video(path=Path("frames"), root=Path("."), fps=fps)

    return make


def picture(width: int, height: int) -> bytes:
    """A frame as a PNG."""
    PIL.Image.new("RGB", (width, height)).save("one.png")
    return Path("one.png").read_bytes()


def two_sizes() -> Video:
    """A folder of frames of two sizes."""
    return frames(picture(16, 12), picture(32, 12))()


FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")


def tables(data: bytes, **changed: bytes | None) -> bytes:
    """An MP4 with other tables, by their names; None takes one away."""
    made, at = b"", 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        content: bytes | None = data[at + 8 : at + size]
        at += size
        if kind in FOLDERS:
            content = tables(content or b"", **changed)
        content = changed.get(kind.decode("latin-1"), content)
        if content is not None:
            made += struct.pack(">I4s", len(content) + 8, kind) + content
    return made


def lying(**changed: bytes | None) -> Callable[[], Video]:
    """An MP4 of 20 frames whose header says something else."""
    return file(change=lambda data: tables(data, **changed))


def frames_named(count: int, size: int = 1) -> dict[str, bytes | None]:
    """The tables of so many frames of one size."""
    return {
        "stsz": struct.pack(">III", 0, size, count),
        "stts": struct.pack(">IIII", 0, 1, count, 512),
        "stsc": struct.pack(">IIIII", 0, 1, 1, count, 1),
        "stss": None,
        "ctts": None,
    }


def edits(count: int) -> bytes:
    """A list that shows the first frame again and again."""
    return struct.pack(">II", 0, count) + struct.pack(">III", 1, 0, 0x10000) * count


def lasting(*lengths: int) -> dict[str, bytes | None]:
    """The tables of 20 frames: how many are shown for how long, in pairs, in the order of decoding."""
    return {
        "stts": struct.pack(f">II{len(lengths)}I", 0, len(lengths) // 2, *lengths),
        "ctts": None,
        "edts": None,
    }


DAY = 12_800 * 86_400
UNEVEN = [0.0, 0.01, 0.02, 3.0, 3.01, 9.0, 9.5, 100.0]
PLAYLIST = b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"

CASES = {
    "a video of 0 bytes": Case(of_bytes(b""), "data.jsonl:1: video: found 'a.mp4': an empty file"),
    "a video that is text": Case(
        of_bytes(b"hello " * 50),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "a video that is a page": Case(
        of_bytes(b"<!doctype html><html></html>"),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "a playlist": Case(
        of_bytes(PLAYLIST, "a.m3u8"),
        "data.jsonl:1: video: found 'a.m3u8': a file that can't be decoded (Invalid data found",
    ),
    "a playlist named as a video": Case(
        of_bytes(PLAYLIST),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "a list of files to join": Case(
        of_bytes(b"ffconcat version 1.0\nfile /etc/passwd\n"),
        "data.jsonl:1: video: found 'a.mp4': a file that is no video",
    ),
    "only sound": Case(
        sound, "data.jsonl:1: video: found 'a.mp4': a file with audio only; expected a file with a"
    ),
    "half a video": Case(
        file(change=lambda data: data[: len(data) // 2]),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "half a WebM": Case(
        file("a.webm", lambda data: data[: len(data) // 2], codec="libvpx", frames=100),
        "data.jsonl:1: video: found 'a.webm': a truncated video: 1.9 of the 4.0 seconds that its",
    ),
    "half an AVI": Case(
        file("a.avi", lambda data: data[: len(data) // 2], codec="mpeg4"),
        "data.jsonl:1: video: found 'a.avi': a file that can't be decoded (Invalid data found",
    ),
    "a video without its head": Case(
        file(change=lambda data: data[200:]),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "a video with noise in it": Case(
        file(change=lambda data: data[:400] + b"\xff" * 900 + data[1300:]),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Invalid data found",
    ),
    "a header of two billion frames": Case(
        lying(**frames_named(2**31)),
        "data.jsonl:1: video: found 'a.mp4': a header that names 2,147,483,648 frames in a file of",
    ),
    "a header of a million frames": Case(
        lying(**frames_named(10**6)),
        "data.jsonl:1: video: found 'a.mp4': a header that names 1,000,000 frames in a file of",
    ),
    "a header of some frames too many": Case(
        lying(**frames_named(4000)),
        "data.jsonl:1: video: found 'a.mp4': a truncated video: 20 of the 4,000 frames that its header",
    ),
    "a header without frames": Case(
        lying(**frames_named(0)), "data.jsonl:1: video: found 'a.mp4': a video without frames"
    ),
    "frames of four gigabytes": Case(
        lying(**frames_named(1, 2**32 - 1)), "data.jsonl:1: video: found 'a.mp4': a video without frames"
    ),
    "a hundred thousand edits": Case(
        lying(elst=edits(100_000)),
        "data.jsonl:1: video: found 'a.mp4': a header that shows the same frames more than 4 times",
    ),
    "an edit that shows nothing": Case(
        lying(elst=struct.pack(">IIIII", 0, 1, 1000, 2**31 - 1, 0x10000)),
        "data.jsonl:1: video: found 'a.mp4': a truncated video: 4 of the 20 frames that its header",
    ),
    "a table of two billion times": Case(
        lying(stts=struct.pack(">IIII", 0, 2**31 - 1, 20, 512)),
        "data.jsonl:1: video: found 'a.mp4': a file that can't be decoded (Cannot allocate memory)",
    ),
    "frames that last a day each": Case(
        lying(**lasting(20, DAY)), "data.jsonl:1: video: found a video of 1,728,000 seconds; expected"
    ),
    "a last frame that lasts a day": Case(lying(**lasting(19, 512, 1, DAY)), Right([0, 18, 18, 18])),
    "a length of zero": Case(
        lying(mvhd=b"\0" * 12 + struct.pack(">II", 0, 0) + b"\0" * 80), Right([0, 5, 10, 15])
    ),
    "a picture named as a video": Case(
        lambda: of_bytes(picture(16, 12))(), "data.jsonl:1: video: found 'a.mp4': a file that is no video"
    ),
    "one frame": Case(file(frames=1), Right([0])),
    "frames that come unevenly": Case(file(frames=8, times=UNEVEN), Right([0, 6, 6, 6])),
    "a pause of an hour": Case(file(frames=3, times=[0.0, 1.0, 4_000.0]), Right([0, 1, 2])),
    "a rate beside a file": Case(
        lambda: Video(path=file()().path, root=Path("."), fps=2.0),
        "data.jsonl:1: video.fps: found frames a second (2) of a video file, which says them",
    ),
    "a folder without frames": Case(
        frames(), "data.jsonl:1: video: found the folder 'frames' without frames"
    ),
    "frames that last a lifetime": Case(
        lambda: frames(picture(16, 12), picture(16, 12), fps=1e-9)(),
        "data.jsonl:1: video: found a video of 2,000,000,000 seconds; expected at most 604,800",
    ),
    "frames of 0 bytes": Case(
        frames(b"", b""), "data.jsonl:1: video (0.png): found '0.png', which is not a picture (an empty file)"
    ),
    "frames of two sizes": Case(
        two_sizes, "data.jsonl:1: video (1.png): found a frame of 32×12 pixels; expected 16×12, as the"
    ),
    "no such video": Case(
        lambda: Video(path=Path("no.mp4"), root=Path(".")),
        "data.jsonl:1: video: found 'no.mp4', which does not exist (looked for '",
    ),
    "a video outside the root": Case(
        lambda: Video(path=Path("../a.mp4"), root=Path(".")),
        "data.jsonl:1: video: found '../a.mp4', which is outside '.'",
    ),
    "frames that aren't there": Case(
        lambda: Video(frames=(Image(path=Path("no.png"), root=Path(".")),), fps=1.0),
        "data.jsonl:1: video.frames[0]: found 'no.png', which does not exist (looked for '",
    ),
}
