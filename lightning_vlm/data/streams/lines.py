"""Shards of JSON lines."""

import os
from typing import Any

import numpy as np

from lightning_vlm.data.read.data_file import BYTE_ORDER_MARK, open_file
from lightning_vlm.data.read.json_layout import JsonLayout
from lightning_vlm.data.streams.shard import Shard, open_once
from lightning_vlm.errors import DataError

_CHUNK = 1 << 22
_NEWLINE = 10


class Lines(Shard):
    r"""A file of JSON lines. Opening it looks for the ends of lines and parses nothing; 8 bytes a row remain.

    Args:
        path: The file.

    Raises:
        DataError: There is no such file, or it is one JSON array.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from lightning_vlm.data.read.reading import Reading
    >>> path = Path(tempfile.mkdtemp(), "pets.jsonl")
    >>> _ = path.write_text('{"question": "1?", "answer": "One."}\n\n{"question": "2?", "answer": "Two."}')
    >>> shard = Lines(str(path))
    >>> shard.rows, shard.conversation(1, Reading(path.parent, print)).messages[1].parts[0].text
    (2, 'Two.')
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._layout = JsonLayout(path, path)
        self._starts, self._numbers = _starts(path)

    @property
    def rows(self) -> int:
        """How many there are; blank lines are none."""
        return len(self._starts) - 1

    def name_of(self, number: int) -> str:
        """`file:line`, counted from 1."""
        line = number + 1 if self._numbers is None else int(self._numbers[number])
        return f"{self.path}:{line}"

    def _row(self, number: int, source: str) -> Any:
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        try:
            line = os.pread(open_once(self.path).fileno(), stop - start, start).rstrip()
        except OSError as error:
            raise DataError(source, "", f"a row that can't be read ({error})", "a file as it was") from None
        if not line:
            raise DataError(source, "", "an empty row", "a JSON object")
        return self._layout.parse(line, source)


def _starts(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Where each row begins, and the end of the file; and the numbers of their lines, if some are blank.

    A blank line belongs to the row before it, which JSON allows.
    """
    ends: list[np.ndarray] = []
    buffer = bytearray(_CHUNK)
    size = first = 0
    with open_file(path, path, "one JSON object a line") as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            if not size:
                first = len(BYTE_ORDER_MARK) if buffer.startswith(BYTE_ORDER_MARK) else 0
                if buffer[first : first + 1] == b"[":
                    found, expected = "one JSON array", "one JSON object a line, such as `jq -c '.[]'` writes"
                    raise DataError(path, "", found, expected)
            ends.append(np.flatnonzero(np.frombuffer(buffer, np.uint8, count) == _NEWLINE) + size)
            size += count
    starts = np.concatenate([np.array([first]), *(found + 1 for found in ends)])
    if starts[-1] >= size:  # the last line ends with a newline
        starts = starts[:-1]
    lengths = np.diff(starts, append=size)
    filled = lengths > 2  # no row is shorter than `{}`, which has three bytes with its newline
    if len(starts) and not filled[-1]:
        filled[-1] = lengths[-1] > 1
    all_starts = np.append(starts[filled], size).astype(np.int64)
    return all_starts, None if filled.all() else np.flatnonzero(filled) + 1
