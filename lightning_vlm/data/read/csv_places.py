"""Where each row of a CSV or TSV file lies, so that one can be read without the others."""

import csv
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_vlm.data.read.fields import names, show
from lightning_vlm.data.read.json_places import Place, open_file
from lightning_vlm.errors import DataError

_LAYOUT = "a line of column names and a row a line"
_LONGEST_CELL = 1 << 27  # pictures in base64 are longer than the 128 KiB that the csv module allows


class Header(NamedTuple):
    """The first line of a table.

    Args:
        columns: The names of the columns.
        delimiter: What stands between cells.
        end: Where the line ends in the file.
        lines: How many lines it takes.
    """

    columns: list[str]
    delimiter: str
    end: int
    lines: int


def header_of(path: str, name: str, tabs: bool) -> Header:
    """Read the first line of a table.

    Args:
        path: The file.
        name: What errors call it.
        tabs: Whether tabs stand between cells; otherwise whichever of `,` `;` and tab the line has most of.

    Raises:
        DataError: No such file, an empty one, or two columns of one name.
    """
    with open_file(path, name, _LAYOUT) as file:
        first = file.readline()
        text = _decoded(first, f"{name}:1").removeprefix("\ufeff")
        if not text.strip():
            raise DataError(name, "", "no column names", _LAYOUT)
        delimiter = "\t" if tabs else max(",;\t", key=text.count)
        try:
            columns = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter))]
        except csv.Error as error:
            raise DataError(f"{name}:1", "", f"what is no table ({error})", _LAYOUT) from None
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{name}:1", column, "a column that stands there twice", "each column once")
    return Header(columns, delimiter, len(first), 1)


def places(path: str, name: str, header: Header) -> Iterator[tuple[Place, bytes]]:
    """Each row below the header, with its bytes. A row may have several lines, in cells with quotes."""
    csv.field_size_limit(_LONGEST_CELL)
    with open_file(path, name, _LAYOUT) as file:
        file.seek(header.end)
        end, line = header.end, 1
        pieces: list[bytes] = []

        def lines() -> Iterator[str]:
            for piece in file:
                pieces.append(piece)
                yield piece.decode("utf-8", "replace")  # reported when the row is read

        # Without `strict`, an unclosed quote would swallow the rest of the file.
        reader = csv.reader(lines(), delimiter=header.delimiter, strict=True)
        while True:
            pieces.clear()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{name}:{line + 1}", "", f"what is no row ({error})", _LAYOUT) from None
            record = b"".join(pieces)
            start, end = end, end + len(record)
            if any(row):
                yield Place(start, end, line + 1, 0), record
            line += len(pieces)


def parse(data: bytes, source: str, header: Header) -> dict[str, Any]:
    """A row as an object; empty cells are absent.

    Raises:
        DataError: Not UTF-8, or another number of cells than the header has.
    """
    csv.field_size_limit(_LONGEST_CELL)
    # A cell may hold other characters at which Python splits lines.
    lines = io.StringIO(_decoded(data, source), newline="\n")
    cells = next(csv.reader(lines, delimiter=header.delimiter))
    if len(cells) != len(header.columns):
        found = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        raise DataError(source, "", found, f"{len(header.columns)}, one for each of {names(header.columns)}")
    row: dict[str, Any] = {name: cell for name, cell in zip(header.columns, cells, strict=True) if cell}
    if "weight" in row:
        try:
            row["weight"] = float(row["weight"])
        except ValueError:
            raise DataError(source, "weight", show(row["weight"]), "a number") from None
    return row


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        found = f"the byte {data[error.start]:#04x}, which is not UTF-8"
        raise DataError(source, f"byte {error.start + 1}", found, "text in UTF-8") from None
