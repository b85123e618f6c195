"""Data files: where a row lies, so that rows can be read in any order, and how a file is opened."""

import atexit
import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from lightning_vlm.errors import DataError
from lightning_vlm.nearest import did_you_mean

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Place(NamedTuple):
    """Where a row lies: its bytes from `start` to `end`, its line from 1, its number in an array from 1.

    >>> Place(0, 17, line=1, number=0).name("pets.jsonl"), Place(3, 20, line=2, number=1).name("pets.json")
    ('pets.jsonl:1', 'pets.json:2[0]')
    """

    start: int
    end: int
    line: int
    number: int
    """0 if the file isn't an array."""

    def name(self, path: str) -> str:
        """`file:line`; in an array, where several may share a line, with the index of the row too."""
        line = f"{path}:{self.line}"
        return f"{line}[{self.number - 1}]" if self.number else line


class Layout(Protocol):
    """How a type of file is laid out."""

    def rows(self) -> Iterator[tuple[Place, bytes]]:
        """Each row of the file, with its bytes.

        Raises:
            DataError: The file is broken, so that the rows after the break can't be found.
        """

    def parse(self, data: bytes, source: str) -> Any:
        """The row that these bytes hold.

        Args:
            data: The bytes of the row.
            source: Where it came from, as `file:line`.

        Raises:
            DataError: The row is broken.
        """


def open_file(path: str, name: str, layout: str) -> BinaryIO:
    """Open a data file.

    Args:
        path: The file.
        name: What errors call it.
        layout: What should be in it, in words.

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


def _near_file(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError:  # the folder isn't there either
        return ""


def decode(data: bytes, source: str) -> str:
    """The text of a row.

    Raises:
        DataError: It isn't UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, source, column=error.start + 1) from None


def not_utf8(error: UnicodeDecodeError, source: str, column: int) -> DataError:
    """The error about a byte.

    Args:
        error: What Python says.
        source: Where the byte stands, as `file:line`.
        column: Which byte it is there, counted from 1.
    """
    found = f"the byte {error.object[error.start]:#04x}, which is not UTF-8"
    return DataError(source, f"byte {column}", found, "text in UTF-8")


def unpack(path: str) -> str:
    """The path of a file without compression: the file itself, or a copy of what is in a `.gz`.

    A copy is there for as long as the process lives.

    Raises:
        DataError: What ends in `.gz` is no such file.
    """
    if not path.lower().endswith(".gz") or not os.path.isfile(path):
        return path
    return _unpacked(os.path.abspath(path), os.stat(path).st_mtime_ns, path)


@cache
def _unpacked(path: str, changed: int, name: str) -> str:
    folder = tempfile.mkdtemp(prefix="lightning-vlm-")
    owner = os.getpid()

    def clean() -> None:
        if os.getpid() == owner:  # a forked worker that ends leaves the file to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(clean)
    copy = Path(folder, Path(path).name[: -len(".gz")])
    try:
        with gzip.open(path, "rb") as packed, copy.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(name, "", f"a broken gzip file ({error})", "a whole .gz file") from None
    return str(copy)
