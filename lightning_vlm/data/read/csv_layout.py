"""Where each row of a CSV or TSV file lies, so that one can be read without the others."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lightning_vlm.counted import counted
from lightning_vlm.data.read.data_file import Place, decode, open_file
from lightning_vlm.data.read.limits import LONGEST_ROW, check_row, lines_of
from lightning_vlm.data.read.words import describe, quote
from lightning_vlm.errors import DataError

_LAYOUT = "a line of column names and a row a line"


class CsvLayout:
    """Rows below a line of column names.

    Args:
        path: The file.
        name: What errors call it.
        tabs: Whether tabs stand between cells; otherwise whichever of `,` `;` and tab the first line has most
            of.

    Raises:
        DataError: No such file, an empty one, or two columns of one name.
    """

    def __init__(self, path: str, name: str, tabs: bool) -> None:
        self._path = path
        self._name = name
        source = f"{name}:1"
        with open_file(path, name, _LAYOUT) as file:
            header, _ = next(lines_of(file), (b"", 0))
        check_row(header, source)
        text = decode(header, source).removeprefix("\ufeff")
        if not text.strip():
            raise DataError(name, "", "no column names", _LAYOUT)
        self._delimiter = "\t" if tabs else max(",;\t", key=text.count)
        self._header_length = len(header)
        try:
            cells = next(csv.reader([text], delimiter=self._delimiter))
        except csv.Error as error:
            raise DataError(source, "", f"what is no table ({error})", _LAYOUT) from None
        self._columns = [cell.strip() for cell in cells]
        for column, count in Counter(self._columns).items():
            if count > 1:
                raise DataError(source, column, "a column that stands there twice", "each column once")

    def rows(self) -> Iterator[tuple[Place, bytes]]:
        """Each row below the header; see `Layout`. One with quotes may have several lines."""
        csv.field_size_limit(LONGEST_ROW)  # pictures in base64 exceed the module's own limit
        with open_file(self._path, self._name, _LAYOUT) as file:
            file.seek(self._header_length)
            end = self._header_length
            line = 2
            row_lines: list[bytes] = []

            def lines() -> Iterator[str]:
                for data, _ in lines_of(file):
                    check_row(data, f"{self._name}:{line}")
                    row_lines.append(data)
                    yield data.decode("utf-8", "replace")  # reported when the row is read

            # Without `strict`, an unclosed quote would swallow the rest of the file.
            reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
            while True:
                row_lines.clear()
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    found = f"what is no row ({error})"
                    raise DataError(f"{self._name}:{line}", "", found, _LAYOUT) from None
                row = b"".join(row_lines)
                start, end = end, end + len(row)
                if any(cells):
                    yield Place(start, end, line, 0), row
                line += len(row_lines)

    def parse(self, data: bytes, source: str) -> dict[str, Any]:
        """A row as an object; see `Layout`. Empty cells are absent."""
        csv.field_size_limit(LONGEST_ROW)  # pictures in base64 exceed the module's own limit
        # A cell may hold other characters at which Python splits lines.
        lines = io.StringIO(decode(data, source), newline="\n")
        cells = next(csv.reader(lines, delimiter=self._delimiter))
        if len(cells) != len(self._columns):
            expected = f"{len(self._columns)}, one for each of {quote(self._columns)}"
            raise DataError(source, "", counted(len(cells), "cell"), expected)
        row: dict[str, Any] = {
            column: cell for column, cell in zip(self._columns, cells, strict=True) if cell
        }
        if "weight" in row:
            try:
                row["weight"] = float(row["weight"])
            except ValueError:
                raise DataError(source, "weight", describe(row["weight"]), "a number") from None
        return row
