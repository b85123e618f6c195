"""Many shards as one source, whose samples are checked as they are read."""

import fnmatch
import hashlib
import os
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.conversation import Conversation, Conversations, TaskTable
from lightning_vlm.data.read.bounds import CUT, OnBadBox
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.columns import check_our_names, check_their_names
from lightning_vlm.data.read.faults import Faults, skip_summary
from lightning_vlm.data.read.folders import PREFERRED
from lightning_vlm.data.read.reading import AllowUrls, Notes, Reading, say
from lightning_vlm.data.read.source import OnBadSample
from lightning_vlm.data.streams.archives import Archive
from lightning_vlm.data.streams.files import ARCHIVES, ARROW, PARQUET, shard_files
from lightning_vlm.data.streams.lines import Lines
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.streams.shard import Shard
from lightning_vlm.data.streams.tables import Arrow, GroupCache, Parquet
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.errors import DataError, UserError

_BLOCKS_LOOKED_AT = 8
_ROWS_LOOKED_AT = 8
"""Of each of those blocks."""


class Shards(Conversations):
    """Files of which only the places of rows are in memory; rows are read and checked when they are needed.

    Opening it finds out how many rows each shard has and looks at some of them, spread over all, so that data
    of another format fails before anything runs. Any other bad row is found when it is read: in training,
    `on_bad_sample` says whether it raises or is skipped and counted.

    Args:
        pattern: Which files; see `shard_files`.
        image_root: Where paths of pictures begin; None is the folder of each shard. Pictures in rows of
            tables and in archives need none.
        on_bad_sample: What becomes of a shard that can't be opened or is empty, and of bad rows that are
            looked at: `raise` reports all of them, `skip` goes on without them and says so.
        columns: As of `read`.
        allow_urls: As of `read`.
        split: As of `read`, where a folder or a data set has several.
        bad_boxes: As of `read`.
        box_format: As of `read`.
        streaming: How it is mixed, and its tasks; None is as `Streaming` says.

    Raises:
        DataError: No shard, broken or empty shards, or bad rows.
        UserError: A wrong argument, or files that can't be read at any place.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.jsonl", "b.jsonl"):
    ...     _ = (folder / name).write_text(json.dumps({"question": "Who?", "answer": name}))
    >>> shards = Shards(f"{folder}/*.jsonl")
    >>> len(shards), shards[1].messages[1].parts[0].text
    (2, 'b.jsonl')
    """

    windows: Windows

    def __init__(
        self,
        pattern: str,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        columns: Mapping[str, str] | None = None,
        allow_urls: AllowUrls = False,
        split: str = "train",
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        begun = time.monotonic()
        streaming = streaming or Streaming()
        columns = dict(columns or {})
        check_our_names(columns)
        self.name = str(pattern)
        self._image_root = image_root
        self._cuts = bad_boxes == "clip"
        self._reading = Reading(
            Path(image_root or "."),
            Faults(self.name).check_image,
            allow_urls,
            columns,
            bad_boxes=bad_boxes,
            box_format=BoxFormat.read(box_format),
        )
        self._cache = GroupCache()
        self._faults = Faults(self.name)
        self._skips = on_bad_sample != "raise"  # lint collects faults
        self._shards = self._open_all(shard_files(self.name, PREFERRED.get(split, [split])))
        if not self._skips:
            self._faults.raise_if_any()
        if not self._shards:
            raise UserError(f"{self.name}: no shard is left; {skip_summary(self.skipped)}")
        self._ends = np.cumsum([shard.rows for shard in self._shards])
        blocks = [shard.blocks for shard in self._shards]
        rows = [count for counts, _ in blocks for count in counts]
        sizes = [size for _, all_sizes in blocks for size in all_sizes]
        self.windows = Windows.of_rows(rows, streaming.shuffle_window, sizes, self.fingerprint())
        files = [shard.path for shard in self._shards]
        self._task_of = _declared(streaming.tasks or {}, files, self.name, split == "train")
        more = len(set(self._task_of)) if self._task_of else 1
        self._cache.most = self.windows.most_blocks + more
        self._tasks = self._look()
        self._say(time.monotonic() - begun, streaming.shuffle_window)

    @property
    def tasks_are_known(self) -> bool:
        """Whether the task of each sample is known without reading it."""
        return self._task_of is not None

    def fingerprint(self) -> str:
        """Of the names and the numbers of rows of all shards, wherever they lie."""
        names = [f"{os.path.basename(shard.path)} {shard.rows}" for shard in self._shards]
        return hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()

    def task_table(self) -> TaskTable:
        """The tasks that `data.streaming.tasks` gives to shards.

        Without it, the names are those of the rows that were looked at and `OTHER`, which each sample counts
        as here.
        """
        return self._tasks

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        return self._read(range(len(self))[index], self._reading)

    def _read(self, index: int, reading: Reading) -> Conversation:
        place = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[place]
        number = index - int(self._ends[place]) + shard.rows
        if self._image_root is None:
            reading = replace(reading, root=Path(shard.path).parent)
        if self._cuts:
            reading = replace(reading, notes=Notes())
        conversation = shard.conversation(number, reading)
        if self._task_of is not None:
            conversation = _of_task(conversation, self._task_of[place])
        cut = self._cuts and reading.notes.has(CUT)
        return replace(conversation, changes=(CUT,)) if cut else conversation

    def _open_all(self, files: Sequence[str]) -> list[Shard]:
        """The shards that can be read and have rows; the faults of the others are collected."""
        opened: list[Shard] = []
        for file in files:
            try:
                shard = _open(file, self._cache)
                if not shard.rows:
                    expected = "at least one row; write it again, or leave it out"
                    raise DataError(file, "", "an empty shard", expected, "no_samples")
            except DataError as error:
                self._faults.add(error)
                self.skipped = [*self.skipped, error]
            else:
                opened.append(shard)
        return opened

    def _look(self) -> TaskTable:
        """Read some rows of some blocks, evenly spread; gives the table of tasks."""
        reading = replace(self._reading, notes=Notes(), opening=True)
        tasks: Counter[str] = Counter()
        bad: list[DataError] = []
        looked_at = _spread(self.windows)
        self.only_words = True
        for index in looked_at:
            try:
                conversation = self._read(index, reading)
            except DataError as error:
                self._faults.add(error)
                bad.append(error)
            else:
                tasks[conversation.task] += 1
                self.only_words &= conversation.only_words
        check_their_names(reading, self.name, bool(bad))
        if not self._skips:
            self._faults.raise_if_any()
        if not tasks:
            raise UserError(
                f"{self.name}: all {len(bad)} rows that were looked at are bad; {skip_summary(bad)}"
            )
        self._notes = reading.notes.lines()
        self._looked_at = len(looked_at)
        if self._task_of is not None:
            names = tuple(dict.fromkeys(self._task_of))
            counts = [shard.rows for shard in self._shards]
            numbers = np.array([names.index(task) for task in self._task_of], np.uint16)
            return TaskTable(names, array("H", np.repeat(numbers, counts).tobytes()))
        names = (*sorted(tasks), OTHER)
        return TaskTable(names, array("H", [len(names) - 1]) * len(self))

    def _say(self, seconds: float, window: int) -> None:
        count = len(self._shards)
        shards = counted(count, "shard")
        fate = "is skipped and counted" if self._skips else "ends the run (data.on_bad_sample)"
        say(
            f"{self.name}: {counted(len(self), 'sample')} in {shards}, opened in {seconds:.1f} s. "
            f"{self._looked_at} were looked at; the others are checked as they are read, "
            f"and a bad one {fate}."
        )
        for line in self._notes:
            say(f"{self.name}: {line}, of those that were looked at")
        if self.skipped:
            say(f"{self.name}: shards are left out: {skip_summary(self.skipped)}")
        sizes = self.windows.order("length").window_sizes
        if sizes and (usual := int(np.median(sizes))) < min(window, len(self)) // 2:
            say(
                f"{self.name}: {usual:,} samples are mixed at a time, not data.streaming.shuffle_window "
                f"{window:,}: row groups of {self.windows.most_bytes >> 20} MiB are in memory in each worker"
            )


def _open(file: str, cache: GroupCache) -> Shard:
    name = file.lower()
    if name.endswith(PARQUET):
        return Parquet(file, cache)
    if name.endswith(ARROW):
        return Arrow(file)
    return Archive(file) if name.endswith(ARCHIVES) else Lines(file)


def _spread(windows: Windows) -> list[int]:
    """Some samples of some blocks, evenly spread over all."""
    blocks = np.unique(np.linspace(0, len(windows.rows) - 1, _BLOCKS_LOOKED_AT).round().astype(int))
    found: list[int] = []
    for block in blocks:
        start, rows = int(windows.starts[block]), int(windows.rows[block])
        places = np.unique(np.linspace(0, rows - 1, _ROWS_LOOKED_AT).round().astype(int))
        found += [start + int(place) for place in places]
    return found


def _declared(tasks: Mapping[str, str], files: Sequence[str], name: str, must_fit: bool) -> list[str] | None:
    """The task of each shard; None if none is given, or if some don't fit and needn't.

    Raises:
        UserError: A shard is of no task or of several, or a pattern fits none.
    """
    if not tasks:
        return None
    found: list[str] = []
    for file in files:
        fitting = [task for task, pattern in tasks.items() if _fits(file, pattern)]
        if not fitting and not must_fit:
            return None
        if len(fitting) != 1:
            what = f"{' and '.join(fitting)} for" if fitting else "no task for"
            expected = "each shard to fit one pattern, such as {vqa: '*vqa*', ocr: '*ocr*'}"
            raise UserError(f"data.streaming.tasks: found {what} {file} of {name}; expected {expected}")
        found += fitting
    for task in tasks:
        if task not in found and must_fit:
            raise UserError(
                f"data.streaming.tasks.{task}: found {tasks[task]!r}, which fits no shard of {name}; "
                f"expected a pattern of paths such as {files[0]}"
            )
    return found


def _fits(file: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(os.path.basename(file), pattern)


def _of_task(conversation: Conversation, task: str) -> Conversation:
    """A conversation of the task of its shard.

    Raises:
        DataError: It is of another one.
    """
    if conversation.task == task:
        return conversation
    if conversation.task != "default":
        expected = f"'{task}', which data.streaming.tasks says of its shard"
        raise DataError(conversation.source, "task", f"'{conversation.task}'", expected)
    return replace(conversation, task=task)
