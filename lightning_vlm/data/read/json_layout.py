"""Where each row of a JSON file lies, so that one can be read without the others."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning_vlm.data.read.data_file import BYTE_ORDER_MARK, Place, decode, open_file
from lightning_vlm.data.read.json_text import LAYOUT, JsonText, broken, key_of_rows, twice
from lightning_vlm.data.read.limits import (
    LONGEST_ROW,
    check_depth,
    check_row,
    check_whole,
    lines_of,
)
from lightning_vlm.errors import DataError


class JsonLayout:
    """Rows as JSON.

    A file that begins with `[` is an array. One that is a single object with one list of objects, such as
    `{"data": [...]}`, is that array. In any other, each line is a row, and blank lines are none.

    Args:
        path: The file.
        name: What errors call it.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._name = name
        self.rows_are_lines = False
        """Whether each row was a line of its own when the rows were last asked for."""

    def rows(self) -> Iterator[tuple[Place, bytes]]:
        """Each row, with its bytes; see `Layout`."""
        with open_file(self._path, self._name, LAYOUT) as file:
            beginning = file.read(1 << 16).removeprefix(BYTE_ORDER_MARK).lstrip()
            file.seek(0)
            is_array = beginning.startswith(b"[")
            if is_array or (beginning.startswith(b"{") and self._is_one_object(file)):
                check_whole(os.fstat(file.fileno()).st_size, self._name)
                yield from JsonText(file.read(), self._name).rows()
            else:
                first, _, others = beginning.partition(b"\n")
                if first.strip() == b"{" and others.lstrip().startswith(b'"'):
                    found = "an object over several lines"
                    raise DataError(
                        self._name, "", found, "each object on one line, or one array of them in .json"
                    )
                self.rows_are_lines = True
                yield from _lines(file)

    def parse(self, data: bytes, source: str) -> Any:
        """The value that the bytes of a row say; see `Layout`.

        >>> layout = JsonLayout("pets.jsonl", "pets.jsonl")
        >>> layout.parse(b'{"messages": }', "pets.jsonl:7")
        Traceback (most recent call last):
        lightning_vlm.errors.DataError: pets.jsonl:7: column 14: found broken JSON (Expecting value) at ...
        >>> layout.parse(b'{"task": "vqa", "task": "ocr"}', "pets.jsonl:8")
        Traceback (most recent call last):
        lightning_vlm.errors.DataError: pets.jsonl:8: task: found a key that stands there twice; expected ...
        """
        check_row(data, source)
        text = decode(data, source)
        try:
            value = json.loads(text, object_pairs_hook=partial(_object, source))
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise broken(error, source) from None
        check_depth(value, data, source)
        return value

    def _is_one_object(self, file: BinaryIO) -> bool:
        """Whether a file that begins with `{` is one object as a whole, and hasn't one a line.

        Only what surely is one object counts as such, so that a broken line never costs the memory of the
        file. The file is then at its beginning again.
        """
        if Path(self._path).suffix.lower() in (".jsonl", ".ndjson"):
            return False
        beginning = [line for line, _ in itertools.islice(lines_of(file), 100)]
        is_whole_file = not file.read(1)
        file.seek(0)
        beginning[0] = beginning[0].removeprefix(BYTE_ORDER_MARK)
        lines = [line for line in beginning if line.strip()]
        if not lines:
            return False
        first, *others = lines
        if len(first) > LONGEST_ROW:  # no row is so long
            return True
        value = _value_of(first)
        if value is None:  # a broken line, or the first of several lines of an object
            return bool(others) and not others[0].lstrip().startswith(b"{")
        is_only_line = is_whole_file and not others
        return is_only_line and key_of_rows(value) is not None


def _lines(file: BinaryIO) -> Iterator[tuple[Place, bytes]]:
    end = 0
    for number, (line, length) in enumerate(lines_of(file), 1):
        start = end
        end += length
        if number == 1 and line.startswith(BYTE_ORDER_MARK):
            start = len(BYTE_ORDER_MARK)
            line = line.removeprefix(BYTE_ORDER_MARK)
        if length <= LONGEST_ROW:  # else it is refused, by its length
            line = line.rstrip()
        if line:
            yield Place(start, start + len(line), number, 0), line


def _value_of(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _object(source: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs. Python's own decoder takes the last of equal keys in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        ((key, _),) = counts.most_common(1)
        raise twice(key, source)
    return value
