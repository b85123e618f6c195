"""How far a run has come, beside its answers, so that the same run goes on where it was stopped."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lightning_vlm_callbacks.whole_files import naming


class Step(NamedTuple):
    """What a batch has left behind.

    Args:
        lengths: How many lines it has in each file.
        sizes: How many bytes each file has with them.
        places: Which items of the data were answered.
        skipped: The errors of those that weren't.
        sums: What it adds to the scores; see `Scores.state`.
        counts: Further counts by name.
    """

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]
    places: tuple[int, ...]
    skipped: tuple[str, ...]
    sums: Mapping[str, Any]
    counts: Mapping[str, int] = {}


class Progress:
    """A file of steps of one process. It is deleted when the run ends, so that there is none of a whole run.

    A line that was being written when the process was killed doesn't count, and neither does what a file of
    answers has behind the last step: that batch comes again.

    Args:
        part: What this process writes; the file of steps lies beside it.

    >>> Progress(Path("answers.jsonl")).file.name
    '.answers.jsonl.progress'
    """

    def __init__(self, part: Path) -> None:
        self.file = part.with_name(f".{part.name}.progress")
        self._open: BinaryIO | None = None

    def read(self) -> tuple[dict[str, Any], list[Step]] | None:
        """What the run was made with, and its steps; None if there is no run that was stopped."""
        try:
            lines = self.file.read_bytes().split(b"\n")[:-1]
            facts = json.loads(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        steps = []
        for line in lines[1:]:
            try:
                lengths, sizes, places, skipped, sums, counts = json.loads(line)
            except ValueError:  # nothing behind it can be trusted
                break
            steps.append(Step(tuple(lengths), tuple(sizes), tuple(places), tuple(skipped), sums, counts))
        return (facts, steps) if isinstance(facts, dict) else None

    def begin(self, facts: Mapping[str, Any], steps: list[Step]) -> None:
        """Begin to write, with the steps that are kept.

        They take the place of the file at once: a process that is killed here loses none of them.
        """
        unfinished = self.file.with_name(f"{self.file.name}.unfinished")
        self._open = unfinished.open("wb")
        self._write(facts)
        for step in steps:
            self.add(step)
        self.close()
        os.replace(unfinished, self.file)
        self._open = self.file.open("ab")

    def add(self, step: Step) -> None:
        """Add a step, once its answers are in their files."""
        self._write(list(step))

    def _write(self, value: Any) -> None:
        assert self._open is not None
        with naming(self.file):
            self._open.write(json.dumps(value).encode() + b"\n")
            self._open.flush()

    def close(self) -> None:
        """End writing. May be called more than once."""
        if self._open is not None:
            with suppress(OSError):  # of what couldn't be written, which was an error then
                self._open.close()
            self._open = None

    def delete(self) -> None:
        """The run is over, or gives way to another."""
        self.close()
        self.file.unlink(missing_ok=True)
