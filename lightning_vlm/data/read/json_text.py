"""One JSON text that is read as a whole, row by row."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from lightning_vlm.data.read.data_file import BYTE_ORDER_MARK, Place, not_utf8
from lightning_vlm.data.read.dialects import find_dialect
from lightning_vlm.data.read.limits import LONGEST_ROW, check_row, check_whole, values_of
from lightning_vlm.data.read.words import printable
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

LAYOUT = "one JSON object a line, or one JSON array of objects"
"""What is expected of a JSON file, in words."""
_SPACE = re.compile(r"[ \t\r\n]*")
_WINDOWS = (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, LONGEST_ROW + 1)
"""How many characters are looked at for the end of a value."""
_LITERAL = 16
"""A word, number or escape that begins so close to the end of a window may be whole in a larger one."""


class JsonText:
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
            raise broken(error, f"{self._name}:{error.lineno}") from None
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = 1 + before.count(b"\n")
            column = error.start - before.rfind(b"\n")
            raise not_utf8(error, f"{self._name}:{line}", column) from None
        except (ValueError, RecursionError) as error:
            raise broken(error, f"{self._name}:{self._line}") from None

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
        check_whole(len(self._data), self._name, values_of(self._data))
        whole = json.loads(self._text)
        of_rows = key_of_rows(whole)
        if of_rows is None:
            yield self._row(0)
            return
        keys = set()
        for key in self._keys():
            if key in keys:
                raise twice(key, f"{self._name}:{self._line}")
            keys.add(key)
            if key == of_rows:
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
        """Go past a value; its bytes.

        It is looked for in windows that grow, so that no more is built than the largest row may hold.
        """
        for size in _WINDOWS:
            window = self._text[self._at : self._at + size]
            is_cut = self._at + size < len(self._text)
            try:
                _, end = self._decoder.raw_decode(window)
                if end < len(window) or not is_cut:
                    return self._take(end)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos > len(window) - _LITERAL
                if not is_cut or not goes_on:
                    raise json.JSONDecodeError(error.msg, self._text, self._at + error.pos) from None
            check_row(window.encode(), f"{self._name}:{self._line}")
        raise AssertionError("the largest window is longer than a row may be")

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


def key_of_rows(value: Any) -> str | None:
    """The only key under which an object has a list of objects; None if the object is a row itself."""
    if not isinstance(value, dict) or find_dialect(value) is not None:
        return None
    keys = [key for key, item in value.items() if _are_objects(item)]
    return keys[0] if len(keys) == 1 else None


def _are_objects(items: Any) -> bool:
    if not isinstance(items, list) or not items:
        return False
    return isinstance(items[0], dict)


def twice(key: str, source: str) -> DataError:
    """The error about a key that an object has twice."""
    return DataError(source, printable(key), "a key that stands there twice", "each key of an object once")


def broken(error: ValueError | RecursionError, source: str) -> DataError:
    """What Python says about JSON that it can't read, in our words."""
    if isinstance(error, json.JSONDecodeError):
        there = error.doc[error.pos : error.pos + 30]
        found = f"broken JSON ({error.msg}) at {shorten(there)}"
        return DataError(source, f"column {error.colno}", found, LAYOUT)
    found = "JSON nested too deep" if isinstance(error, RecursionError) else "a number with too many digits"
    return DataError(source, "", found, "a conversation")
