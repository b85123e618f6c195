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

from lightning_vlm_callbacks.whole_files import FULL, refusal

from lightning_vlm.data.read.limits import copy_unpacked
from lightning_vlm.errors import DataError, UserError
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


_OTHERS = (
    (b"\x1f\x8b", "a compressed file", "the name to end in .gz"),
    (b"PK\x03\x04", "a ZIP archive", "the files in it"),
    (b"BZh", "a file compressed by bzip2", "it to be unpacked"),
    (b"\xfd7zXZ", "a file compressed by xz", "it to be unpacked"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "it to be unpacked"),
    (b"PAR1", "a parquet file", "the name to end in .parquet"),
    (b"ARROW1", "an arrow file", "the name to end in .arrow"),
    (b"SQLite format 3", "a data base", "its rows, exported"),
    (
        b"version https://git-lfs",
        "a pointer of git-lfs instead of the file",
        "the file itself; run git lfs pull",
    ),
    (b"\xff\xfe", "text in UTF-16 or UTF-32", "text in UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "text in UTF-8"),
    (b"\0\0\xfe\xff", "text in UTF-32", "text in UTF-8"),
    (b"<!DOCTYPE", "a web page instead of the file", "the file itself; download it again"),
    (b"<html", "a web page instead of the file", "the file itself; download it again"),
)
"""How files begin that are no text in UTF-8, what they are, and what is expected in their place."""


def open_file(path: str, name: str, layout: str) -> BinaryIO:
    """Open a data file, and look at its first bytes.

    Args:
        path: The file.
        name: What errors call it.
        layout: What should be in it, in words.

    Raises:
        DataError: There is none, it can't be opened, or it is of another kind.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  # the caller closes it
    except FileNotFoundError:
        expected = f"a file with {layout}{_near_file(path)}"
        raise DataError(name, "", "no such file", expected) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(name, "", f"what can't be opened ({error})", f"a file with {layout}") from None
    start = file.read(16)
    file.seek(0)
    for magic, found, expected in _OTHERS:
        if start.startswith(magic):
            file.close()
            raise DataError(name, "", found, expected)
    return file


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
            copy_unpacked(packed, file, os.path.getsize(path), name)  # type: ignore[arg-type]
    except DataError:
        clean()
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        clean()
        if isinstance(error, OSError) and error.errno in FULL:
            full = refusal(OSError(error.errno, error.strerror, str(copy)))
            raise UserError(f"{name}: no room to unpack it: {full}; set TMPDIR, or unpack it") from error
        raise DataError(name, "", f"a broken gzip file ({error})", "a whole .gz file") from None
    return str(copy)
