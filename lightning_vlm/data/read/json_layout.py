"""Where each row of a JSON file lies, so that one can be read without the others."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning_vlm.data.read.data_file import BYTE_ORDER_MARK, Place, decode, not_utf8, open_file
from lightning_vlm.data.read.dialects import find_dialect
from lightning_vlm.data.read.words import printable
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

_LAYOUT = "one JSON object a line, or one JSON array of objects"
_SPACE = re.compile(r"[ \t\r\n]*")


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
        with open_file(self._path, self._name, _LAYOUT) as file:
            beginning = file.read(1 << 16).removeprefix(BYTE_ORDER_MARK).lstrip()
            file.seek(0)
            is_array = beginning.startswith(b"[")
            if is_array or (beginning.startswith(b"{") and self._is_one_object(file)):
                yield from _Text(file.read(), self._name).rows()
            else:
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
        text = decode(data, source)
        try:
            return json.loads(text, object_pairs_hook=partial(_object, source))
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise _broken(error, source) from None

    def _is_one_object(self, file: BinaryIO) -> bool:
        """Whether a file that begins with `{` is one object as a whole, and hasn't one a line.

        Only what surely is one object counts as such, so that a broken line never costs the memory of the
        file. The file is then at its beginning again.
        """
        if Path(self._path).suffix.lower() in (".jsonl", ".ndjson"):
            return False
        beginning = list(itertools.islice(file, 100))
        is_whole_file = not file.readline()
        file.seek(0)
        beginning[0] = beginning[0].removeprefix(BYTE_ORDER_MARK)
        lines = [line for line in beginning if line.strip()]
        if not lines:
            return False
        first, *others = lines
        value = _value_of(first)
        if value is None:  # a broken line, or the first of several lines of an object
            return bool(others) and not others[0].lstrip().startswith(b"{")
        is_only_line = is_whole_file and not others
        return is_only_line and _key_of_rows(value) is not None


def _lines(file: BinaryIO) -> Iterator[tuple[Place, bytes]]:
    end = 0
    for number, line in enumerate(file, 1):
        start = end
        end += len(line)
        if number == 1 and line.startswith(BYTE_ORDER_MARK):
            start = len(BYTE_ORDER_MARK)
            line = line.removeprefix(BYTE_ORDER_MARK)
        line = line.rstrip()
        if line:
            yield Place(start, start + len(line), number, 0), line


def _value_of(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _key_of_rows(value: Any) -> str | None:
    """The only key under which an object has a list of objects; None if the object is a row itself."""
    if not isinstance(value, dict) or find_dialect(value) is not None:
        return None
    keys = [key for key, item in value.items() if _are_objects(item)]
    return keys[0] if len(keys) == 1 else None


def _are_objects(items: Any) -> bool:
    if not isinstance(items, list) or not items:
        return False
    return isinstance(items[0], dict)


class _Text:
    """Reads a JSON text once from its beginning, and knows the byte and the line where it is.

    Places count bytes, and Python counts characters.

    Args:
        data: The whole file.
        name: What errors call it.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        self._data = data.removeprefix(BYTE_ORDER_MARK)
        self._text = ""
        self._decoder = json.JSONDecoder()
        self._at = 0
        self._byte = len(data) - len(self._data)
        self._line = 1

    def rows(self) -> Iterator[tuple[Place, bytes]]:
        """Each row, with its bytes."""
        try:
            self._text = self._data.decode()
            if self._next() == "[":
                yield from self._array()
                if self._next():
                    raise self._error("Expecting nothing after the array")
            else:
                yield from self._object()
        except DataError:
            raise
        except json.JSONDecodeError as error:
            raise _broken(error, f"{self._name}:{error.lineno}") from None
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = 1 + before.count(b"\n")
            column = error.start - before.rfind(b"\n")
            raise not_utf8(error, f"{self._name}:{line}", column) from None
        except (ValueError, RecursionError) as error:
            raise _broken(error, f"{self._name}:{self._line}") from None

    def _array(self) -> Iterator[tuple[Place, bytes]]:
        """The elements of the array that begins here."""
        self._take(1)
        if self._next() == "]":
            self._take(1)
            return
        for number in itertools.count(1):
            yield self._row(number)
            following = self._next()
            if following not in ("]", ","):
                raise self._error("Expecting ',' or ']'")
            self._take(1)
            if following == "]":
                return
            self._next()

    def _object(self) -> Iterator[tuple[Place, bytes]]:
        """The rows of the object that begins here: those in its only list, or the object itself."""
        whole = json.loads(self._text)
        key_of_rows = _key_of_rows(whole)
        if key_of_rows is None:
            yield self._row(0)
            return
        keys = set()
        for key in self._keys():
            if key in keys:
                raise _twice(key, f"{self._name}:{self._line}")
            keys.add(key)
            if key == key_of_rows:
                yield from self._array()
            else:
                self._take_value()

    def _row(self, number: int) -> tuple[Place, bytes]:
        """The value that begins here, as the row with this number."""
        start = self._byte
        line = self._line
        row = self._take_value()
        return Place(start, self._byte, line, number), row

    def _keys(self) -> Iterator[str]:
        """The keys of the valid object that begins here. After each one, go past its value."""
        self._take(1)
        while self._next() != "}":
            if self._next() == ",":
                self._take(1)
                self._next()
            key = json.loads(self._take_value())
            self._next()
            self._take(1)  # the colon
            self._next()
            yield key

    def _next(self) -> str:
        """Skip white space; the character after it, or an empty text at the end."""
        space = _SPACE.match(self._text, self._at)
        if space:
            self._take(len(space[0]))
        return self._text[self._at : self._at + 1]

    def _take_value(self) -> bytes:
        """Go past a value; its bytes."""
        _, end = self._decoder.raw_decode(self._text, self._at)
        return self._take(end - self._at)

    def _take(self, length: int) -> bytes:
        """Go past some characters; their bytes."""
        taken = self._text[self._at : self._at + length]
        data = taken.encode()
        self._at += length
        self._byte += len(data)
        self._line += taken.count("\n")
        return data

    def _error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._text, self._at)


def _object(source: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs. Python's own decoder takes the last of equal keys in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        ((key, _),) = counts.most_common(1)
        raise _twice(key, source)
    return value


def _twice(key: str, source: str) -> DataError:
    return DataError(source, printable(key), "a key that stands there twice", "each key of an object once")


def _broken(error: ValueError | RecursionError, source: str) -> DataError:
    """What Python says about JSON that it can't read, in our words."""
    if isinstance(error, json.JSONDecodeError):
        there = error.doc[error.pos : error.pos + 30]
        found = f"broken JSON ({error.msg}) at {shorten(there)}"
        return DataError(source, f"column {error.colno}", found, _LAYOUT)
    found = "JSON nested too deep" if isinstance(error, RecursionError) else "a number with too many digits"
    return DataError(source, "", found, "a conversation")
