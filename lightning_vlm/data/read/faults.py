"""All faults of a data file in one error, so that a file is corrected once and not once a run."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_vlm_callbacks.whole_files import written_whole

from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.images import find_image
from lightning_vlm.data.video.files import check_video
from lightning_vlm.errors import DataError

SHOWN = 20
"""How many faults are named one by one."""


class BadSamplesError(DataError):
    """Several bad samples. It counts as the first of them, and its message has a line for each.

    Args:
        name: The file.
        errors: Those that are shown, those of one kind together.
        counts: How many there are of each kind.

    >>> bad = [DataError(f"a.jsonl:{line}", "weight", "-1", "a number >= 0") for line in (3, 5)]
    >>> print(BadSamplesError("a.jsonl", [*bad, DataError("a.jsonl:4", "task", "3", "a text")], {}))
    a.jsonl:3: weight: found -1; expected a number >= 0 (also a.jsonl:5)
    a.jsonl:4: task: found 3; expected a text
    """

    def __init__(self, name: str, errors: list[DataError], counts: dict[str, int]) -> None:
        first = errors[0]
        super().__init__(first.source, first.key, first.found, first.expected, first.kind)
        self.name = name
        self.errors = errors
        self.counts = counts
        message = "\n".join(_lines(name, errors, counts))
        self.args = (message,)

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self.errors, self.counts)


class Faults:
    """Collects the faults of a file: the first of each kind, and how many there are.

    Args:
        name: The file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: dict[str, list[DataError]] = {}
        self._counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, error: DataError) -> None:
        """Count a fault, and keep it if it may be shown."""
        kind = _kind(error)
        self._counts[kind] += 1
        first = self._first.setdefault(kind, [])
        if len(first) < SHOWN:
            first.append(error)

    def check_image(self, image: Image | Video, source: str, key: str) -> None:
        """Look for a picture or a video. What was meant is only sought for faults that are shown."""
        advise = self._counts.total() < SHOWN
        if isinstance(image, Video):
            check_video(image, source, key, advise)
        else:
            find_image(image, source, key, advise)

    def raise_if_any(self) -> None:
        """Raise what was added.

        Raises:
            DataError: The only fault as it is, or several as `BadSamplesError`.
        """
        if not self._counts:
            return
        errors = self._shown()
        if self._counts.total() == 1:
            raise errors[0]
        raise BadSamplesError(self._name, errors, dict(self._counts))

    def _shown(self) -> list[DataError]:
        """The faults to name: `SHOWN` at most, some of every kind, those of one kind together."""
        rounds = itertools.zip_longest(*self._first.values())  # the first of every kind, then the second, ...
        in_turn = [error for error in itertools.chain.from_iterable(rounds) if error is not None]
        numbers = Counter(_kind(error) for error in in_turn[:SHOWN])
        shown: list[DataError] = []
        for kind, errors in self._first.items():
            shown += errors[: numbers[kind]]
        return shown


def together(errors: list[DataError]) -> DataError:
    """One error for the faults of several files, such as those of training and of validation."""
    if len(errors) == 1:
        return errors[0]
    shown: list[DataError] = []
    counts: Counter[str] = Counter()
    for error in errors:
        if isinstance(error, BadSamplesError):
            shown += error.errors
            counts.update(error.counts)
        else:
            shown.append(error)
            counts[_kind(error)] += 1
    return BadSamplesError("all files", shown, dict(counts))


def skip_summary(errors: Sequence[DataError]) -> str:
    """One line about samples that are skipped.

    >>> errors = [DataError("a.jsonl:1", "weight", "-1", "a finite number >= 0")]
    >>> skip_summary(errors)
    '1 bad: weight (1); the first is a.jsonl:1: weight: found -1; expected a finite number >= 0'
    """
    if not errors:
        return "none bad"
    counts = Counter(_kind(error) for error in errors)
    kinds = _most_common(counts)
    return f"{len(errors)} bad: {kinds}; the first is {errors[0]}"


def write_skip_report(errors: Iterable[DataError], path: str | Path) -> None:
    """Write what was skipped and why: one JSON object a line with `source`, `key`, `found`, `expected`.

    Args:
        errors: A source's `skipped`, or several together.
        path: The file to write. Its folder is made.
    """
    path = Path(path)
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for error in errors:
            fault = {
                "source": error.source,
                "key": error.key,
                "found": error.found,
                "expected": error.expected,
            }
            file.write(json.dumps(fault) + "\n")


def _kind(error: DataError) -> str:
    """The kind of a fault: the same mistake in different turns is one, such as `messages[*].role`."""
    if not error.key:
        return "whole sample"
    return re.sub(r"\d+", "*", error.key)


def _most_common(counts: Counter[str]) -> str:
    shown = [f"{kind} ({count:,})" for kind, count in counts.most_common(5)]
    return ", ".join(shown)


def _lines(name: str, errors: list[DataError], counts: dict[str, int]) -> list[str]:
    """The lines of a message. Equal faults share one."""
    alike: dict[tuple[str, str, str], list[DataError]] = {}
    for error in errors:
        fault = (error.key, error.found, error.expected)
        alike.setdefault(fault, []).append(error)
    lines = []
    for first, *others in alike.values():
        line = str(first)
        if others:
            sources = ", ".join(error.source for error in others)
            line += f" (also {sources})"
        lines.append(line)
    total = sum(counts.values())
    if total > len(errors):
        kinds = _most_common(Counter(counts))
        lines.append(f"{name}: {total:,} samples are bad, {len(errors)} of them are shown: {kinds}")
    return lines
