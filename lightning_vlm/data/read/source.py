"""What all files and data sets share: every row is checked at the start, and read again when it is needed."""

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from lightning_vlm.data.conversation import Conversation, Conversations, Image, TaskTable, Video
from lightning_vlm.data.read.bounds import CUT, LATER, OnBadBox
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.columns import check_our_names, check_their_names
from lightning_vlm.data.read.faults import Faults, skip_summary
from lightning_vlm.data.read.reading import AllowUrls, Location, Notes, Reading, say
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.data.skip_list import SkipList
from lightning_vlm.errors import DataError, UserError

OnBadSample: TypeAlias = Literal["raise", "skip"]
COLLECT: Any = "collect"
"""An `on_bad_sample` for programs: as `skip`, but faults of whole files are in `skipped` too."""


class Source(Conversations):
    """A sequence of conversations that holds no samples, only where each lies in its file.

    So big files are cheap to hold and to send to workers. Opening one reads the file once and builds every
    conversation (pictures are looked for, not opened), so that all bad samples are reported before training
    begins. A child says where its records lie, how to get one, and how to make a row of it.

    Args:
        name: What errors call it.
        image_root: The folder that holds pictures given by path.
        on_bad_sample: `raise` reports all bad samples in one error; `skip` skips them.
        columns: Our names for keys -> the names that they have in the rows.
        allow_urls: Whether pictures may be fetched from http and https addresses; `private` allows those of
            private networks too.
        bad_boxes: What becomes of a box that reaches beyond its picture: `error` or `clip`.
        box_format: The unit and order of boxes where the data doesn't say it; see `BoxFormat.read`.
        skip: The file of a list of rows that are left out, unread; see `SkipList`.

    Raises:
        DataError: Bad samples, or none at all.
        UserError: A wrong argument, or bad samples only.
    """

    place_length: ClassVar[int]
    """How many whole numbers say where a record lies."""
    needs: ClassVar[str | None] = None
    """The key that each row must have; None accepts every dialect."""
    conversation_of: Callable[[Any, Location], Conversation] = staticmethod(any_conversation)
    """Makes a conversation of a row."""

    def __init__(
        self,
        name: str,
        image_root: str,
        on_bad_sample: OnBadSample,
        columns: Mapping[str, str] | None = None,
        allow_urls: AllowUrls = False,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        skip: str | None = None,
    ) -> None:
        if on_bad_sample not in ("raise", "skip", COLLECT):
            raise UserError(f"on_bad_sample is '{on_bad_sample}'; choose 'raise' or 'skip'")
        if bad_boxes not in ("error", "clip"):
            raise UserError(f"data.bad_boxes is '{bad_boxes}'; choose 'error' or 'clip'")
        columns = dict(columns or {})
        check_our_names(columns)
        self.name = name
        self.skipped: list[DataError] = []
        """The errors of the samples that are skipped."""
        self._reading = Reading(
            Path(image_root),
            _dont_check,
            allow_urls,
            columns,
            self.needs,
            bad_boxes=bad_boxes,
            box_format=BoxFormat.read(box_format),
        )
        self._places = array("Q")
        self._left_out = SkipList.read(skip).rows(name, self.fingerprint()) if skip else ()
        faults = Faults(name)
        self.only_words = True
        checking = replace(self._reading, check_image=faults.check_image, notes=Notes(), opening=True)
        self._tasks = TaskTable.of_samples(self._check_all(checking, faults, on_bad_sample))
        check_their_names(checking, name, bool(faults))
        if on_bad_sample == "raise":
            faults.raise_if_any()
        self._check_some_are_left(on_bad_sample)
        if self._left_out:
            say(f"{name}: {len(self._left_out):,} rows are left out, which {skip} lists (data.skip)")
        chosen = checking.box_format
        if chosen and not chosen.is_words and not checking.notes.box_format_is_used:
            checking.notes.say("data.box_format has no effect: no box is without a unit")
        self._compares_later = bad_boxes == "clip" and checking.notes.has(LATER)
        self.notes = checking.notes.lines()
        """What was ignored in its rows or chosen for them, one line each."""
        for line in self.notes:
            say(f"{name}: {line}")

    def _check_some_are_left(self, on_bad_sample: OnBadSample) -> None:
        nothing = DataError(self.name, "", "no samples", "at least one", "no_samples")
        if self._places:
            return
        if on_bad_sample == COLLECT:
            self.skipped = self.skipped or [nothing]
        elif self.skipped:
            raise UserError(f"{self.name}: no sample is left; {skip_summary(self.skipped)}")
        elif self._left_out:
            raise UserError(
                f"{self.name}: no sample is left; data.skip leaves out all {len(self._left_out):,}"
            )
        else:
            raise nothing

    def _check_all(self, reading: Reading, faults: Faults, on_bad_sample: OnBadSample) -> Iterator[str]:
        """Check every record and remember the places of the good ones; gives their tasks."""
        try:
            for place, record in self._records():
                if self._left_out and self._name_of(place)[len(self.name) :] in self._left_out:
                    continue
                try:
                    conversation = self._build(place, record, reading)
                except DataError as error:
                    faults.add(error)
                    if on_bad_sample != "raise":
                        self.skipped.append(error)
                else:
                    self._places.extend(place)
                    self.only_words &= conversation.only_words
                    yield conversation.task
        except DataError as error:  # the rest of the file can't be read
            if on_bad_sample == "skip":
                raise
            faults.add(error)
            if on_bad_sample == COLLECT:
                error.kind = error.kind or "broken_file"
                self.skipped.append(error)

    def _build(self, place: tuple[int, ...], record: Any, reading: Reading) -> Conversation:
        source = self._name_of(place)
        try:
            return self.conversation_of(self._row(record, source), Location(source, reading))
        except RecursionError:
            raise DataError(source, "", "a value nested too deep", "a conversation") from None

    def files(self) -> "Sequence[Source]":
        """Itself."""
        return (self,)

    def task_table(self) -> TaskTable:
        """The task of each sample, known since the source was opened."""
        return self._tasks

    def __len__(self) -> int:
        return len(self._places) // self.place_length

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        start = range(len(self))[index] * self.place_length
        place = tuple(self._places[start : start + self.place_length])
        if not self._compares_later:
            return self._build(place, self._record(place), self._reading)
        reading = replace(self._reading, notes=Notes())
        conversation = self._build(place, self._record(place), reading)
        return replace(conversation, changes=(CUT,)) if reading.notes.has(CUT) else conversation

    @abstractmethod
    def fingerprint(self) -> str:
        """Of its contents: other contents have another one."""

    @abstractmethod
    def _records(self) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Every record, and where it lies; what costs much and isn't needed for checking may be absent."""

    @abstractmethod
    def _record(self, place: tuple[int, ...]) -> Any:
        """The whole record at a place."""

    @abstractmethod
    def _name_of(self, place: tuple[int, ...]) -> str:
        """What errors call the record at a place, such as `file:line`."""

    @abstractmethod
    def _row(self, record: Any, source: str) -> Any:
        """The row that a record holds; DataError if it holds none."""


def _dont_check(image: Image | Video, source: str, key: str) -> None:
    """Pictures and videos were checked when the source was opened."""
