"""Where each record of a JSON file lies, so that one can be read without the others."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lightning_vlm.data.read.dialects import find_dialect
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import did_you_mean, shorten

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
    """0 if the file isn't an array."""

    def name(self, path: str) -> str:
        """`file:line`; in an array, where several may share a line, with the record's index too."""
        return f"{path}:{self.line}" + (f"[{self.number - 1}]" if self.number else "")


def places(path: str, name: str | None = None) -> Iterator[tuple[Place, bytes]]:
    """Each record of a file, with its bytes.

    A file that begins with `[` is an array. One that is a single object with one list of objects, such as
    `{"data": [...]}`, is that array. In any other, each line is a record, and blank lines are none.

    Args:
        path: The file.
        name: What errors call it; None is its path.

    Raises:
        DataError: An array that is broken: the records after the break can't be found.
    """
    name = path if name is None else name
    with open_file(path, name, _LAYOUT) as file:
        begin = file.read(1 << 16).removeprefix(_BOM).lstrip()
        file.seek(0)
        if begin[:1] == b"[":
            yield from _array(file.read(), name)
            return
        is_lines = Path(path).suffix.lower() in (".jsonl", ".ndjson")
        if begin[:1] == b"{" and not is_lines and not _has_record_a_line(file):
            file.seek(0)
            yield from _one_object(file.read(), name)
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


def _near_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError:  # the folder isn't there either
        return ""


def open_file(path: str, name: str, layout: str) -> BinaryIO:
    """Open a data file.

    Raises:
        DataError: There is none, or it can't be opened.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError:
        expected = f"a file with {layout}{_near_file(path)}"
        raise DataError(name, "", "no such file", expected) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(name, "", f"what can't be opened ({error})", f"a file with {layout}") from None


def parse(data: bytes, source: str) -> Any:
    """The value that some bytes of JSON say.

    Raises:
        DataError: Not UTF-8 or not JSON (with the column), nested too deep, an endless number, or an object
            that has a key twice.

    >>> parse(b'{"messages": }', "pets.jsonl:7")
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:7: column 14: found broken JSON (Expecting value) at '}'; ...
    >>> parse(b'{"task": "vqa", "task": "ocr"}', "pets.jsonl:8")
    Traceback (most recent call last):
    lightning_vlm.errors.DataError: pets.jsonl:8: task: found a key that stands there twice; expected ...
    """
    try:
        return _DECODER.decode(data.decode())
    except _DuplicateKeyError as error:
        raise _twice(error.key, source) from None
    except (ValueError, RecursionError) as error:
        raise _broken(error, source) from None


def _twice(key: str, source: str) -> DataError:
    shown = key if key.isprintable() and len(key) < 40 else shorten(key, 40)
    return DataError(source, shown, "a key that stands there twice", "each key of an object once")


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs; Python's own decoder takes the last of equal keys in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(counts.most_common(1)[0][0])
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _has_record_a_line(file: BinaryIO) -> bool:
    """Whether a file that begins with `{` has an object a line, and isn't one object as a whole.

    Only what surely is one object counts as such, so that a broken line never costs the memory of the file.
    """
    lines = [line for line in itertools.islice(file, 100) if line.strip(_BOM + b" \t\r\n")][:2]
    first = _parsed(lines[0].removeprefix(_BOM))
    if first is None:
        return len(lines) == 1 or isinstance(_parsed(lines[1]), dict) or lines[1].lstrip()[:1] == b"{"
    alone = len(lines) == 1 and not file.readline()
    return not (alone and _list_of_objects(first))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _list_of_objects(value: Any) -> str | None:
    """The only key under which an object has a list of objects; None if the object is a sample itself."""
    if not isinstance(value, dict) or find_dialect(value) is not None:
        return None
    keys = [
        key for key, item in value.items() if isinstance(item, list) and isinstance((item or [0])[0], dict)
    ]
    return keys[0] if len(keys) == 1 else None


def _one_object(data: bytes, name: str) -> Iterator[tuple[Place, bytes]]:
    """The records of a file that is one object: those of its only list, or the object itself."""
    body = data.removeprefix(_BOM)
    value = _whole(body, name)
    key = _list_of_objects(value)
    if key is None:
        before = len(data) - len(body.lstrip())
        line = 1 + data.count(b"\n", 0, before)
        yield Place(before, len(data.rstrip()), line, 0), body.strip()
        return
    text = body.decode()
    starts: dict[str, int] = {}
    for name_of_value, at in _values(text):
        if name_of_value in starts:
            raise _twice(name_of_value, f"{name}:{1 + text.count(chr(10), 0, at)}")
        starts[name_of_value] = at
    start = starts[key]
    offset = len(data) - len(body) + len(text[:start].encode())
    yield from _array(data[offset:], name, after=data[:offset])


def _whole(body: bytes, name: str) -> Any:
    try:
        return json.loads(body.decode())
    except json.JSONDecodeError as error:
        raise _broken(error, f"{name}:{error.lineno}") from None
    except UnicodeDecodeError as error:
        raise _broken(error, f"{name}:{1 + error.object.count(10, 0, error.start)}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(error, name) from None


def _values(text: str) -> Iterator[tuple[str, int]]:
    """The keys of the outermost object of a text, each with where its value begins."""
    decoder = json.JSONDecoder()
    at = _space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _space(text, _space(text, at) + 1)  # past the colon
        yield key, at
        _, at = decoder.raw_decode(text, at)
        at = _space(text, at)
        if text[at] == ",":
            at = _space(text, at + 1)


def _array(data: bytes, path: str, after: bytes = b"") -> Iterator[tuple[Place, bytes]]:
    """The records of an array, found one after the other: places count bytes, Python counts letters.

    Args:
        data: Begins with the array. Behind an array that stands in an object, there may be more.
        path: The file, for errors.
        after: What stands before `data` in the file.
    """
    body = data.removeprefix(_BOM)
    byte, line, at = len(after) + len(data) - len(body), 1 + after.count(b"\n"), 0
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
        if end < len(text) and not after:
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
