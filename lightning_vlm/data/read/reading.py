"""The settings that every step of reading a row needs, and the notes to report at the end."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.read.fields import names

Look: TypeAlias = Callable[[Image, str, str], object]
"""Called with a picture, its `file:line` and its key."""


class Notes:
    """What a source says in one line each after it was checked, so that no choice is silent.

    >>> notes = Notes()
    >>> notes.ignore("id")
    >>> notes.say("pictures stand before the first question")
    >>> notes.lines()
    ["ignored: 'id' (1 row)", 'pictures stand before the first question (1 row)']
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        """Every key that some row has."""
        self._ignored: Counter[str] = Counter()
        self._said: Counter[str] = Counter()

    def ignore(self, key: str) -> None:
        """A key of a row that has no effect."""
        self._ignored[key] += 1

    def say(self, sentence: str) -> None:
        """A choice that was made for a row."""
        self._said[sentence] += 1

    def lines(self) -> list[str]:
        """One line for all ignored keys, and one for each choice."""
        lines = [f"{sentence} ({_rows(count)})" for sentence, count in self._said.items()]
        if self._ignored:
            lines.insert(0, f"ignored: {names(self._ignored)} ({_rows(max(self._ignored.values()))})")
        return lines


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Args:
        root: The folder that holds pictures given by path.
        look: Called with every picture that is a file; it raises where there is no such file.
        allow_urls: Whether pictures may be fetched over the network.
        columns: Our name for a key -> the name that it has in these rows.
        needs: The one key that a row must have; None accepts every dialect.
        notes: Where what was ignored or chosen is counted.
    """

    root: Path
    look: Look
    allow_urls: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    notes: Notes = field(default_factory=Notes)


def say(line: str) -> None:
    """Print a line, on one process of a distributed run."""
    from lightning.pytorch.utilities import rank_zero_info  # slow, and not needed to read alone

    rank_zero_info(line)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
