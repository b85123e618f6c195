"""What all sources of conversations share: a check of everything at the start, and what it left out."""

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from lightning_vlm.data.conversation import Conversation, Conversations, Image, TaskTable
from lightning_vlm.data.read.dialects import KNOWN
from lightning_vlm.data.read.faults import Faults, skip_summary
from lightning_vlm.data.read.fields import names
from lightning_vlm.data.read.reading import Notes, Reading, say
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import did_you_mean

OnBadSample: TypeAlias = Literal["raise", "skip"]


class Source(Conversations):
    """A sequence of conversations that holds no samples, only where each lies in its file.

    So big files are cheap to hold and to send to workers. Opening one reads the file once and builds every
    conversation (pictures are looked for, not opened), so that all bad samples are reported before training
    begins. A child says where its records lie, how to get one, and how to turn it into a conversation.
    """

    width: ClassVar[int]
    """How many whole numbers say where a record lies."""
    needs: ClassVar[str | None] = None
    """The key that each row must have; None accepts every dialect."""

    def __init__(
        self,
        name: str,
        image_root: str,
        on_bad_sample: OnBadSample,
        columns: Mapping[str, str] | None = None,
        allow_urls: bool = False,
    ) -> None:
        if on_bad_sample not in ("raise", "skip"):
            raise UserError(f"on_bad_sample is '{on_bad_sample}'; choose 'raise' or 'skip'")
        self.name = name
        self.root = Path(image_root)
        self.skipped: list[DataError] = []
        """The errors of the samples that were left out."""
        self._reading = Reading(self.root, _dont_look, allow_urls, _checked_columns(columns), self.needs)
        self._places = array("Q")
        faults = Faults(name)
        checking = replace(self._reading, look=faults.look, notes=Notes())
        self._tasks = TaskTable.of_samples(self._checked(checking, faults, on_bad_sample))
        _check_columns_are_there(checking, name, faults)
        if on_bad_sample == "raise":
            faults.raise_if_any()
        if not self._places and self.skipped:
            raise UserError(f"{name}: no sample is left; {skip_summary(self.skipped)}")
        if not self._places:
            raise DataError(name, "", "no samples", "at least one")
        self.notes = checking.notes.lines()
        """What was ignored in its rows or chosen for them, one line each."""
        for line in self.notes:
            say(f"{name}: {line}")

    def _checked(self, reading: Reading, faults: Faults, on_bad_sample: OnBadSample) -> Iterator[str]:
        """Check every record and remember the place of the good ones; gives their tasks."""
        records = self._records()
        while True:
            try:
                place, record = next(records)
            except StopIteration:
                return
            except DataError as error:  # what follows in the file can't be read
                if on_bad_sample == "skip":
                    raise
                faults.add(error)
                return
            try:
                task = self._built(place, record, reading).task
            except DataError as error:
                faults.add(error)
                if on_bad_sample == "skip":
                    self.skipped.append(error)
            else:
                self._places.extend(place)
                yield task

    def _built(self, place: tuple[int, ...], record: Any, reading: Reading) -> Conversation:
        try:
            return self._build(place, record, reading)
        except RecursionError:
            name = f"{self.name}, the record at {', '.join(map(str, place))}"
            raise DataError(name, "", "a value nested too deep", "a conversation") from None

    def task_table(self) -> TaskTable:
        """Known since the source was opened."""
        return self._tasks

    def __len__(self) -> int:
        return len(self._places) // self.width

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a source with {len(self)} items")
        start = index % len(self) * self.width
        place = tuple(self._places[start : start + self.width])
        return self._build(place, self._record(place), self._reading)

    @abstractmethod
    def _records(self) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Every record, and where it lies; what costs much and isn't needed for checking may be left out."""

    @abstractmethod
    def _record(self, place: tuple[int, ...]) -> Any:
        """The whole record at a place."""

    @abstractmethod
    def _build(self, place: tuple[int, ...], record: Any, reading: Reading) -> Conversation:
        """The conversation that a record holds; DataError if it holds none."""


def _dont_look(image: Image, source: str, key: str) -> None:
    """Every picture was looked for when the source was opened."""


def _checked_columns(columns: Mapping[str, str] | None) -> Mapping[str, str]:
    for ours in columns or {}:
        if ours not in KNOWN:
            expected = f"one of our names, {names(sorted(KNOWN))}, each with the name that it has in the data"
            raise UserError(
                f"data.columns: found {ours!r}; expected {expected}{did_you_mean(ours, KNOWN, quoted=True)}"
            )
    return dict(columns or {})


def _check_columns_are_there(reading: Reading, name: str, faults: Faults) -> None:
    """A mapped column that no row has is a misspelt one, unless the whole file is of another format."""
    keys = reading.notes.keys
    missing = {ours: theirs for ours, theirs in reading.columns.items() if theirs not in keys}
    if not missing or not keys:
        return
    if len(missing) == len(reading.columns) and not faults:
        reading.notes.say("data.columns has no effect: its columns aren't there, and aren't needed")
        return
    ours, theirs = next(iter(missing.items()))
    expected = f"one of {names(sorted(keys))}{did_you_mean(theirs, keys, quoted=True)}"
    raise UserError(f"data.columns.{ours}: found '{theirs}', which no row of {name} has; expected {expected}")
