"""Where each record of a JSON file lies, so that one can be read without the others."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_vlm.data.images import shorten
from lightning_vlm.errors import DataError

_BOM = b"\xef\xbb\xbf"
_LAYOUT = "one JSON object a line, or one JSON array of objects"


class Place(NamedTuple):
    """Where a record lies: its bytes from `start` to `end`, its line from 1, its number in an array from 1.

    >>> Place(0, 17, line=1, number=0).name("pets.jsonl"), Place(3, 20, line=2, number=1).name("pets.json")
    ('pets.jsonl:1', 'pets.json:2[0]')
    """

    start: int
    end: int
    line: int
    number: int
    """0 if the file is no array."""

    def name(self, path: str) -> str:
        """`file:line`; in an array, where several may share a line, with the record's index too."""
        return f"{path}:{self.line}" + (f"[{self.number - 1}]" if self.number else "")


def places(path: str) -> Iterator[tuple[Place, bytes]]:
    """Each record of a file, with its bytes.

    A file that begins with `[` is an array; else each line is a record, and blank lines are none.

    Raises:
        DataError: No such file, or an array that is broken (what follows the break can't be told apart).
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # only opening is tried here
    except FileNotFoundError:
        raise DataError(path, "", "no such file", f"a file with {_LAYOUT}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(path, "", f"what can't be opened ({error})", f"a file with {_LAYOUT}") from None
    with file:
        if file.read(1 << 16).removeprefix(_BOM).lstrip()[:1] == b"[":
            file.seek(0)
            yield from _array(file.read(), path)
            return
        file.seek(0)
        end = 0
        for number, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if number == 1 and line.startswith(_BOM):
                start, line = len(_BOM), line.removeprefix(_BOM)
            line = line.rstrip()
            if line:
                yield Place(start, start + len(line), number, 0), line


def parse(data: bytes, source: str) -> Any:
    """The value that some bytes of JSON say.

    Raises:
        DataError: Not UTF-8 or not JSON (with the column), nested too deep, or an endless number.

    >>> parse(b'{"messages": }', "pets.jsonl:7")
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:7: column 14: found broken JSON (Expecting value) at '}'; ...
    """
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _broken(error, source) from None


def _array(data: bytes, path: str) -> Iterator[tuple[Place, bytes]]:
    """The records of an array, found one after the other: places count bytes, Python counts letters."""
    body = data.removeprefix(_BOM)
    byte, line, at = len(data) - len(body), 1, 0
    decoder = json.JSONDecoder()
    try:
        text = body.decode()
        end, number = text.index("[") + 1, 0
        while True:
            start = _space(text, end)
            if text[start : start + 1] == "]" and number == 0:
                break
            line += text.count("\n", at, start)
            byte, at = byte + len(text[at:start].encode()), start
            _, end = decoder.raw_decode(text, start)
            number += 1
            record = text[start:end].encode()
            yield Place(byte, byte + len(record), line, number), record
            start = _space(text, end)
            if text[start : start + 1] == "]":
                break
            if text[start : start + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, start)
            end = start + 1
        end = _space(text, start + 1)
        if end < len(text):
            raise json.JSONDecodeError("Expecting nothing after the array", text, end)
    except json.JSONDecodeError as error:
        raise _broken(error, f"{path}:{error.lineno}") from None
    except UnicodeDecodeError as error:
        raise _broken(error, f"{path}:{1 + error.object.count(10, 0, error.start)}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(error, f"{path}:{line}") from None


def _space(text: str, start: int) -> int:
    """Where the white space that begins at `start` ends."""
    while text[start : start + 1] in (" ", "\t", "\r", "\n"):
        start += 1
    return start


def _broken(error: ValueError | RecursionError, source: str) -> DataError:
    """What Python says about JSON that it can't read, in our words."""
    if isinstance(error, UnicodeDecodeError):
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        found = f"the byte {error.object[error.start]:#04x}, which is not UTF-8"
        return DataError(source, f"byte {column}", found, "text in UTF-8")
    if isinstance(error, json.JSONDecodeError):
        found = f"broken JSON ({error.msg}) at {shorten(error.doc[error.pos : error.pos + 30])}"
        return DataError(source, f"column {error.colno}", found, _LAYOUT)
    found = "JSON nested too deep" if isinstance(error, RecursionError) else "a number with too many digits"
    return DataError(source, "", found, "a conversation")
