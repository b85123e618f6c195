"""Shards that are tables: parquet and arrow."""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from os import getpid
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_vlm.data.read.table_rows import TableRows
from lightning_vlm.data.streams.shard import Shard
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.host_memory import available_memory

if TYPE_CHECKING:
    import pyarrow

_OPEN_FILES = 64
_PIECE_ROWS = 1024
"""Rows of a row group that are read at once."""


class GroupCache:
    """The row groups that were read last, in this process.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def get(self, key: tuple[str, int], read: Callable[[], Any]) -> Any:
        """What was read under a key, or is read now."""
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        while len(self._groups) >= self.most:
            self._groups.popitem(last=False)
        group = self._groups[key] = read()
        return group

    def __reduce__(self) -> tuple:
        return type(self), (self.most,)  # a worker reads its own


class Parquet(Shard):
    """A parquet file, here or behind an address of `fsspec` such as `hf://`. Opening it reads its footer.

    A row group is read as a whole and kept for as long as its window lasts, in each worker.

    Args:
        path: The file.
        cache: Keeps the row groups of all shards.

    Raises:
        DataError: It is no such file, or a broken one.
        UserError: `pyarrow` is not installed.
    """

    def __init__(self, path: str, cache: GroupCache) -> None:
        super().__init__(path)
        self._cache = cache
        check_installed(path)
        try:
            footer = _open_parquet(path, getpid()).metadata
        except Exception as error:  # pyarrow and the systems of fsspec raise anything at all
            found = f"a parquet file that can't be read ({_reason(error)})"
            raise DataError(path, "", found, "a whole parquet file") from None
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        filled = [number for number, group in enumerate(groups) if group.num_rows]
        self._groups = np.array(filled, np.int64)
        self._row_counts = [groups[number].num_rows for number in filled]
        self._sizes = [groups[number].total_byte_size for number in filled]
        self._ends = np.cumsum(np.array(self._row_counts, np.int64))

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(self._row_counts)

    @property
    def blocks(self) -> tuple[list[int], list[int]]:
        """The rows of each row group, and its bytes."""
        return self._row_counts, self._sizes

    def name_of(self, number: int) -> str:
        """`file:row`, counted from 0."""
        return f"{self.path}:{number}"

    def _row(self, number: int, source: str) -> Any:
        place = int(np.searchsorted(self._ends, number, side="right"))
        group = int(self._groups[place])
        read = self._cache.get((self.path, group), lambda: self._read(group))
        if isinstance(read, str):
            raise DataError(
                source, "", f"the row group {group}, which can't be read ({read})", "a whole file"
            )
        table, rows = read
        return _row_of(table, number - int(self._ends[place]) + self._row_counts[place], rows)

    def _read(self, group: int) -> "tuple[pyarrow.Table, TableRows] | str":
        """A row group, or why it can't be read: it is only tried once for all of its rows."""
        try:
            file = _open_parquet(self.path, getpid())
            return _read_group(file, group), _table_rows(file.schema_arrow)
        except Exception as error:
            return _reason(error)


class Arrow(Shard):
    """An arrow file, of either layout, mapped into memory: rows are read alone, and all processes share it.

    Args:
        path: The file.

    Raises:
        DataError: It is no such file, or a broken one.
        UserError: `pyarrow` is not installed.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        check_installed(path)
        try:
            self._count = _map_arrow(path, getpid())[0].num_rows
        except Exception as error:
            found = f"an arrow file that can't be read ({_reason(error)})"
            raise DataError(path, "", found, "a whole arrow file") from None

    @property
    def rows(self) -> int:
        """How many there are."""
        return self._count

    def name_of(self, number: int) -> str:
        """`file:row`, counted from 0."""
        return f"{self.path}:{number}"

    def _row(self, number: int, source: str) -> Any:
        try:
            table, rows = _map_arrow(self.path, getpid())
            return _row_of(table, number, rows)
        except Exception as error:
            found = f"a row that can't be read ({_reason(error)})"
            raise DataError(source, "", found, "a whole arrow file") from None


def _read_group(file: Any, group: int) -> "pyarrow.Table":
    """A row group, read piece by piece: values that repeat take thousands of times their size in the file.

    Raises:
        MemoryError: It takes more than half of the memory that is free.
    """
    import pyarrow

    free = available_memory()
    pieces, size = [], 0
    for piece in file.iter_batches(_PIECE_ROWS, row_groups=[group], use_threads=False):
        pieces.append(piece)
        size += piece.nbytes
        if size > free // 2:
            raise MemoryError(
                f"it takes more than half of the {free / 1e9:.1f} GB of memory that are free; write it with "
                "smaller row groups"
            )
    return pyarrow.Table.from_batches(pieces, file.schema_arrow)


def check_installed(path: str) -> None:
    """Raise if tables can't be read.

    Raises:
        UserError: `datasets`, which brings `pyarrow`, is not installed.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path} is a table; run `pip install 'lightning-vlm[datasets]'` to read it"
        ) from None


def _row_of(table: "pyarrow.Table", number: int, rows: TableRows) -> dict[str, Any]:
    (record,) = table.slice(number, 1).to_pylist()
    return rows.row(record)


def _table_rows(schema: "pyarrow.Schema") -> TableRows:
    import datasets

    return TableRows(datasets.Features.from_arrow_schema(schema))


@lru_cache(maxsize=_OPEN_FILES)
def _open_parquet(path: str, process: int) -> Any:
    import pyarrow.parquet

    if "://" not in path:
        return pyarrow.parquet.ParquetFile(path)
    import fsspec

    return pyarrow.parquet.ParquetFile(fsspec.open(path, "rb").open())


@lru_cache(maxsize=_OPEN_FILES)
def _map_arrow(path: str, process: int) -> "tuple[pyarrow.Table, TableRows]":
    import pyarrow

    file = pyarrow.memory_map(path)
    try:
        table = pyarrow.ipc.open_file(file).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_stream(file).read_all()
    return table, _table_rows(table.schema)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__
