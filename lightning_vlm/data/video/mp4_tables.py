"""How many entries the header of an MP4 or QuickTime file promises, found before FFmpeg believes it.

FFmpeg makes an entry in memory for each frame that a table names, and again for each edit that shows it, so
that two numbers in a file of some kilobytes make it take hundreds of megabytes.
"""

from collections.abc import Iterator
from typing import BinaryIO

from lightning_vlm.data.video.broken import VideoFileError

_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx")
"""What such a file begins with."""
_FOLDERS = frozenset(
    {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"udta", b"dinf"}
)
_DEEPEST = 10
_MOST_BOXES = 1_000_000
_MOST_ENTRIES = 4
"""For each byte of the file. A frame has at least one byte; old tables of sound count halves of it."""
_WAITS = b"\xff" * 8
"""The time of an edit that shows nothing."""


def check_tables(file: BinaryIO) -> None:
    """Refuse a file whose tables name far more than can be in it.

    Args:
        file: Any file; those of another kind pass. It may stand anywhere afterwards.

    Raises:
        VideoFileError: The header is none of an honest file.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(8)[4:] not in _FIRST:
        return
    entries = 0
    named = edits = 0
    for number, (kind, start, end) in enumerate(_boxes(file, 0, size)):
        if number == _MOST_BOXES:
            raise VideoFileError(f"a header of more than {_MOST_BOXES:,} parts")
        if kind == b"cmov":
            raise VideoFileError("a compressed header of QuickTime", "a file that is converted to MP4")
        if kind == b"trak":  # the tables of another track follow
            entries += named * max(1, edits)
            named = edits = 0
        elif kind == b"elst":
            edits += _edits(file, start, end)
        elif kind in (b"stsz", b"stz2"):
            named += _number(file, start + 8)
        elif kind == b"trun":
            entries += _number(file, start + 4)
        total = entries + named * max(1, edits)
        if total > _MOST_ENTRIES * size:
            raise VideoFileError(f"a header that names {total:,} frames in a file of {size:,} bytes")


def _boxes(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each part of a file, in order, and where its content begins and ends."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, content = int.from_bytes(head[8:], "big"), start + 16
        stop = end if length == 0 else min(start + length, end)
        if stop < content:
            return
        yield kind, content, stop
        if kind in _FOLDERS and depth < _DEEPEST:
            yield from _boxes(file, content, stop, depth + 1)
        start = stop


def _number(file: BinaryIO, place: int) -> int:
    file.seek(place)
    return int.from_bytes(file.read(4), "big")


def _edits(file: BinaryIO, start: int, end: int) -> int:
    """How many edits of a list show something."""
    file.seek(start)
    head = file.read(8)
    long = head[:1] == b"\1"
    count, width = int.from_bytes(head[4:], "big"), 20 if long else 12
    data = file.read(min(count * width, end - start - 8))
    time = slice(8, 16) if long else slice(4, 8)
    return sum(data[at : at + width][time] not in (_WAITS, _WAITS[:4]) for at in range(0, len(data), width))
