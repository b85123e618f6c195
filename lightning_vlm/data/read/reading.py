"""What every step of reading a row gets: the settings, where it is, and where to note what was chosen."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.words import describe, quote
from lightning_vlm.errors import DataError

CheckImage: TypeAlias = Callable[[Image | Video, str, str], object]
"""Called with a picture or a video, its `file:line` and its key."""
AllowUrls: TypeAlias = bool | Literal["private"]
"""Whether addresses in data are fetched: none, those of the public internet, or private ones too."""


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
        self.box_format_is_used = False
        """Whether there was a box whose unit and order only `data.box_format` says."""
        self._ignored: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._counted: Counter[tuple[str, str]] = Counter()

    def ignore(self, key: str) -> None:
        """Count a key of a row that has no effect."""
        self._ignored[key] += 1

    def say(self, sentence: str) -> None:
        """Count a choice that was made for a row."""
        self._said[sentence] += 1

    def count(self, sentence: str, things: str) -> None:
        """Count one of the things that something was done to, of which a row may have several."""
        self._counted[sentence, things] += 1

    def has(self, sentence: str) -> bool:
        """Whether a choice was made for a row, or something counted."""
        return sentence in self._said or any(sentence == counted for counted, _ in self._counted)

    def lines(self) -> list[str]:
        """One line for all ignored keys, and one for each choice."""
        lines = [f"{sentence} ({counted(count, 'row')})" for sentence, count in self._said.items()]
        lines += [f"{sentence} ({things}: {count:,})" for (sentence, things), count in self._counted.items()]
        if self._ignored:
            most = max(self._ignored.values())
            lines.insert(0, f"ignored: {quote(self._ignored)} ({counted(most, 'row')})")
        return lines


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Args:
        root: The folder that holds pictures and videos given by path.
        check_image: Called with every picture that is a file, and every video; it raises where there is none.
        allow_urls: Whether pictures and videos may be fetched over the network; `private` allows addresses of
            this machine and of private networks too.
        columns: Our name for a key -> the name that it has in these rows.
        needs: The one key that a row must have; None accepts every dialect.
        notes: Where what was ignored or chosen is counted.
        bad_boxes: What becomes of boxes that reach beyond their picture: `error`, or `clip`.
        box_format: The unit and the order of boxes where the data doesn't say it.
        opening: Whether the rows are read for the first time, to check them.
    """

    root: Path
    check_image: CheckImage
    allow_urls: AllowUrls = False
    columns: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None
    notes: Notes = field(default_factory=Notes)
    bad_boxes: str = "error"
    box_format: BoxFormat | None = None
    opening: bool = False


class Location(NamedTuple):
    """Where in a source a value stands. Everything that reads a value gets its location too.

    Args:
        source: The row, as `file:line`.
        reading: How the row is read.
        key: The key of the value in the row; empty for the whole row.

    >>> at = Location("pets.jsonl:1", Reading(Path("."), print))
    >>> (at / "messages" / 2 / "role").key
    'messages[2].role'
    >>> print((at / "task").wrong(3, "a text"))
    pets.jsonl:1: task: found 3; expected a text
    """

    source: str
    reading: Reading
    key: str = ""

    def __truediv__(self, name: str | int) -> "Location":
        """The location of the value with this key or index."""
        if isinstance(name, int):
            return Location(self.source, self.reading, f"{self.key}[{name}]")
        return Location(self.source, self.reading, f"{self.key}.{name}" if self.key else name)

    def error(self, found: str, expected: str, kind: str = "") -> DataError:
        """The error to raise about this value; its `kind` as of `DataError`."""
        return DataError(self.source, self.key, found, expected, kind)

    def wrong(self, value: Any, expected: str, kind: str = "") -> DataError:
        """The error to raise if something else was expected here than this value."""
        return self.error(describe(value), expected, kind)

    def note(self, sentence: str) -> None:
        """Count a choice that was made for this row."""
        self.reading.notes.say(sentence)

    def tally(self, sentence: str, things: str) -> None:
        """Count one of the things of this row that something was done to."""
        self.reading.notes.count(sentence, things)


def say(line: str) -> None:
    """Print a line, on one process of a distributed run."""
    from lightning.pytorch.utilities import rank_zero_info  # slow, and not needed to read alone

    rank_zero_info(line)
