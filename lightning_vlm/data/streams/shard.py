"""What all kinds of shards share: how many rows they have, and one row after another read at any place."""

from abc import ABC, abstractmethod
from functools import lru_cache
from os import getpid
from typing import Any, BinaryIO

from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.read.reading import Location, Reading
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.errors import DataError

TOGETHER = 64
"""How many neighbouring rows are a block, in files whose rows are read alone."""
_OPEN_FILES = 64


class Shard(ABC):
    """A file of rows that can be read in any order. It holds where they lie, and none of them.

    Args:
        path: The file.

    Raises:
        DataError: It can't be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        """The file; errors call it so."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many there are."""

    @property
    def blocks(self) -> tuple[list[int], list[int]]:
        """The rows of each block, and the bytes that are in memory while they are read."""
        whole, rest = divmod(self.rows, TOGETHER)
        rows = [TOGETHER] * whole + [rest] * bool(rest)
        return rows, [0] * len(rows)

    def conversation(self, number: int, reading: Reading) -> Conversation:
        """The conversation of a row.

        Args:
            number: Of the row, from 0.
            reading: How rows are read.

        Raises:
            DataError: The row is bad, or can't be read.
        """
        source = self.name_of(number)
        try:
            return self._conversation(number, Location(source, reading))
        except RecursionError:
            raise DataError(source, "", "a value nested too deep", "a conversation") from None

    def _conversation(self, number: int, at: Location) -> Conversation:
        return any_conversation(self._row(number, at.source), at)

    @abstractmethod
    def name_of(self, number: int) -> str:
        """What errors call a row, such as `file:line`."""

    @abstractmethod
    def _row(self, number: int, source: str) -> Any:
        """What a row says, as its file has it."""


def open_once(path: str) -> BinaryIO:
    """A file, opened for this process, for `os.pread`. Those that were used last stay open."""
    return _opened(path, getpid())


@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, process: int) -> BinaryIO:
    return open(path, "rb", buffering=0)
