"""Answers on standard output, a line for each line of the input, and nothing else there."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_rows import line_of
from lightning_vlm.data.read.stream import STDIN
from lightning_vlm.errors import DataError

STDOUT = "-"
"""The name that stands for standard output."""
_claimed: list[int] = []
"""The descriptor of the output, once it was claimed."""


def claim_stdout() -> int:
    """Keep standard output for answers: what else is printed goes to standard error from now on.

    Returns:
        A descriptor that leads where standard output led.
    """
    if not _claimed:
        sys.stdout.flush()
        _claimed.append(os.dup(1))
        os.dup2(2, 1)
    return _claimed[0]


class AnswerStream(AnswerFile):
    """As an `AnswerFile`, but its lines go to standard output; they are never read again."""

    def __init__(self) -> None:
        super().__init__(Path(STDOUT))
        self._descriptor = claim_stdout()
        self._written = 0

    def check(self) -> None:
        """There is always a standard output."""

    def set_aside(self) -> Path | None:
        """What was written is gone."""
        return None

    def open(self, lengths: Sequence[int] = (), size: int = 0) -> None:
        """Begin to write."""
        self.lengths = []

    def write(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Add the lines of one batch, which a reader sees at once."""
        lines = [line_of(row) for row in rows]
        left = memoryview(b"".join(lines))
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.lengths.append(len(lines))
        return 0

    def close(self) -> bool:
        """Standard output ends with the process."""
        return True

    def join(self, lengths: Sequence[Sequence[int]]) -> None:
        """One process writes."""

    def first(self, count: int) -> list[dict[str, Any]]:
        """None: they have been shown."""
        return []


def aligned(
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    skipped: Sequence[DataError],
    ids: Mapping[int, str | int],
) -> list[Mapping[str, Any]]:
    """The lines of a batch in the order of the input, where what can't be answered has an `error`.

    Args:
        rows: The answers.
        places: The line of the input that each of them answers.
        skipped: The errors of the other lines.
        ids: What lines call themselves.

    >>> bad = DataError("stdin:1", "", "an empty line", "a question")
    >>> lines = aligned([{"id": "b", "answer": "red"}], [2], [bad], {1: "a"})
    >>> [(line["id"], line.get("error")) for line in lines]
    [('a', 'found an empty line; expected a question'), ('b', None)]
    """
    lines: dict[int, Mapping[str, Any]] = dict(zip(places, rows, strict=True))
    for error in skipped:
        number = int(error.source.rpartition(":")[2])
        text = str(error).removeprefix(f"{error.source}: ")
        name = ids.get(number, error.source)
        lines[number] = {"id": name, "source": error.source, "answer": None, "error": text}
    return [lines[number] for number in sorted(lines)]


def prepare_streams(config: Any) -> None:
    """Keep standard output for answers that go there; answer standard input on one process."""
    comes_in = config.data.predict == STDIN
    if config.out == STDOUT or (comes_in and config.out is None):
        claim_stdout()
    if comes_in:
        config.trainer.enable_progress_bar = False
        if config.trainer.devices == "auto":
            config.trainer.devices = 1
