"""Bounds on what one row may hold, so that a broken or hostile file costs no more than a good one.

Each is far above what honest data has, and is checked before the work that it bounds.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from lightning_vlm.errors import DataError
from lightning_vlm.host_memory import available_memory

LONGEST_ROW = 1 << 27
"""The most bytes of a row: three times what a picture of 64 million pixels takes as a JPEG in base64."""
MOST_VALUES = 1_000_000
"""The most values of a row, counted as the commas and brackets in it."""
DEEPEST = 100
"""How deep the values of a row may be nested. Definitions of tools are the deepest, with about 10."""
MOST_UNPACKED = 200
"""How many times larger than its `.gz` a file may become; text becomes 3 to 30 times larger."""
SMALL_UNPACKED = 1 << 28
"""So many bytes may be unpacked of any file."""
_OF_TEXT = 3
"""How many times its size a JSON file takes in memory while it is read as a whole: bytes, text and a row."""
_OF_VALUE = 64
"""The most bytes that a value takes beside its text."""
_PIECE = 1 << 20


def lines_of(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each with its length in bytes.

    Of a line that is longer than `LONGEST_ROW` only as much is given as shows that it is; the rest is passed
    over piece by piece.

    Args:
        file: Open, where its lines begin.

    >>> import io
    >>> list(lines_of(io.BytesIO(b"one\\n\\ntwo")))
    [(b'one\\n', 4), (b'\\n', 1), (b'two', 3)]
    """
    while line := file.readline(LONGEST_ROW + 1):
        length = len(line)
        piece = line
        while length > LONGEST_ROW and piece and not piece.endswith(b"\n"):
            piece = file.readline(_PIECE)
            length += len(piece)
        yield line, length


def check_row(data: bytes, source: str) -> None:
    """Refuse the bytes of a row that are too many, or that hold too many values, before they are parsed.

    Args:
        data: Of the row.
        source: Where it came from, as `file:line`.

    Raises:
        DataError: There are too many.
    """
    if len(data) > LONGEST_ROW:
        expected = "a shorter row; write large pictures and videos into files, and their paths into the row"
        raise DataError(source, "", f"a row of more than {LONGEST_ROW >> 20} MiB", expected)
    if len(data) <= MOST_VALUES:
        return
    values = values_of(data)
    if values > MOST_VALUES:
        found = f"a row of {values:,} values (commas and brackets)"
        raise DataError(source, "", found, f"at most {MOST_VALUES:,}; divide the sample")


def copy_unpacked(packed: BinaryIO, file: BinaryIO, size: int, name: str) -> None:
    """Copy what is in a compressed file, unless it is far larger than honest data becomes.

    Args:
        packed: Gives the contents.
        file: Gets them.
        size: Of the compressed file in bytes.
        name: What errors call it.

    Raises:
        DataError: It is.
    """
    most = max(SMALL_UNPACKED, MOST_UNPACKED * size)
    copied = 0
    while piece := packed.read(_PIECE):
        copied += len(piece)
        if copied > most:
            found = f"a .gz file of {size:,} bytes that holds more than {most:,}"
            expected = f"at most {MOST_UNPACKED} times its size; unpack it yourself if it is right"
            raise DataError(name, "", found, expected)
        file.write(piece)


def values_of(data: bytes) -> int:
    """About how many values JSON holds: its commas and brackets, also those in texts."""
    return sum(map(data.count, (b",", b"[", b"{")))


def check_depth(value: Any, data: bytes, source: str) -> None:
    """Refuse values that are nested too deep for what reads them later, in whichever version of Python.

    Args:
        value: The parsed row.
        data: Its bytes, which show without a search that most rows can't be nested so deep.
        source: Where it came from, as `file:line`.

    Raises:
        DataError: They are nested more than `DEEPEST` deep.
    """
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise DataError(source, "", f"values nested more than {DEEPEST} deep", "a conversation")


def _children(value: Any) -> list[Any]:
    """The lists and objects that a value holds."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [child for child in inner if isinstance(child, dict | list)]


def check_whole(size: int, name: str, values: int = 0) -> None:
    """Refuse a file that is read as a whole where that would take more memory than there is.

    Args:
        size: Its bytes.
        name: What errors call it.
        values: How many are held at once.

    Raises:
        DataError: It would.
    """
    if size <= LONGEST_ROW:
        return
    needed = _OF_TEXT * size + _OF_VALUE * values
    free = available_memory()
    if needed > free:
        found = (
            f"{size / 1e9:,.1f} GB of JSON in one value, which takes about {needed / 1e9:,.0f} GB of memory "
            f"to read, and {free / 1e9:,.1f} GB are left"
        )
        raise DataError(name, "", found, "one JSON object a line (.jsonl), as each is read alone")
