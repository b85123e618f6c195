"""A file of answers: one JSON object a line, written as answers come, in the order of the data."""

import glob
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning_vlm.data.boxes.pixels import as_row
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice

KEYS = (
    "id",
    "source",
    "task",
    "prompt",
    "images",
    "videos",
    "reasoning",
    "answer",
    "reference",
    "scores",
    "candidates",
    "boxes",
    "right_boxes",
    "unread",
)
"""What each line has."""
_OF_ALL_VERSIONS = ("source", "task", "prompt", "images", "answer", "reference", "scores", "candidates")
"""What each line had in earlier versions too."""
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""JSON takes these as they are, but `str.splitlines` ends a line at them."""


def answer_row(answer: Prediction, choice: ScoreChoice | None = None) -> dict[str, Any]:
    """What a line of the file says.

    `scores` has those that are chosen for the task, where they apply, and `log_prob` and `score` where
    several answers were ranked. A number that isn't finite is null. `id` is the sample's own, or else its
    source. `boxes` are those of the answer in pixels of the pictures as they came, and `unread` says what
    could not be read as one; both are null where no boxes were asked for. `right_boxes` are those of the
    right answer, null where it has none.

    >>> row = answer_row(Prediction("q.jsonl:1", "vqa", "red", "red", prompt="What colour?"))
    >>> row["answer"], row["scores"]
    ('red', {'exact_match': 1.0, 'token_f1': 1.0})
    """
    scores: dict[str, float | None] = {}
    for name, value in (choice or ScoreChoice()).values(answer).items():
        scores[name] = _finite(value)
    if answer.candidates:
        best = answer.candidates[0]
        scores |= {"log_prob": _finite(best.log_prob), "score": _finite(best.score)}
    candidates = []
    for candidate in answer.candidates:
        numbers = {"log_prob": _finite(candidate.log_prob), "score": _finite(candidate.score)}
        candidates.append({**candidate._asdict(), **numbers})
    return {
        "id": answer.source if answer.id is None else answer.id,
        "source": answer.source,
        "task": answer.task,
        "prompt": answer.prompt,
        "images": list(answer.images),
        "videos": list(answer.videos),
        "reasoning": answer.reasoning,
        "answer": answer.text,
        "reference": answer.reference,
        "scores": scores,
        "candidates": candidates,
        "boxes": answer.found and [as_row(item, answer.views) for item in answer.found.items],
        "right_boxes": [as_row(item, answer.views) for item in answer.right] or None,
        "unread": answer.found and list(answer.found.faults),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


class AnswerFile:
    """The file of a run; with several processes each writes a part of its own beside it.

    Each batch is flushed, so a process that is killed loses no answer. The parts are joined at the end, and
    have gone then.

    Args:
        path: Where the answers go.
        rank: This process.
        world: The number of processes.
        choice: Which scores each task has.
    """

    def __init__(self, path: Path, rank: int = 0, world: int = 1, choice: ScoreChoice | None = None) -> None:
        self.path, self.rank, self.world = path, rank, world
        self.choice = choice or ScoreChoice()
        self._file: TextIO | None = None
        self.lengths: list[int] = []
        """How many answers each batch had, from the first on."""

    @property
    def here(self) -> Path:
        """What this process writes."""
        return self.path if self.world == 1 else self.part(self.rank)

    def part(self, rank: int) -> Path:
        """What a process writes.

        >>> AnswerFile(Path("answers.jsonl"), world=2).part(1).name
        'answers.rank-1.jsonl'
        """
        return self.path.with_name(f"{self.path.stem}.rank-{rank}{self.path.suffix}")

    def check(self) -> None:
        """Find out before a model is loaded whether the file can be written.

        Raises:
            UserError: The path is a folder, a file that holds no answers, or can't be written to.
        """
        if self.path.is_dir():
            raise UserError(f"out: found the folder {self.path}; expected the name of a file in it")
        if self.path.exists() and not _holds_answers(self.path):
            raise UserError(
                f"out: found {self.path}, which isn't a file of answers and stays as it is; name another file"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: can't make the folder {self.path.parent} ({error.strerror})") from error
        if not os.access(self.path.parent, os.W_OK):
            raise UserError(f"out: found the folder {self.path.parent}, which can't be written to")

    def set_aside(self) -> Path | None:
        """Rename the answers of an earlier run, those in parts too if it was stopped.

        Returns:
            A new name; None if there were none.
        """
        stem, suffix = self.path.stem, self.path.suffix
        parts = self.path.parent.glob(f"{glob.escape(stem)}.rank-*{glob.escape(suffix)}")
        old = [path for path in (self.path, *sorted(parts)) if path.exists()]
        if not old:
            return None
        number = 1
        while list(self.path.parent.glob(f"{glob.escape(stem)}.previous-{number}*")):
            number += 1
        new = [path.with_name(path.name.replace(stem, f"{stem}.previous-{number}", 1)) for path in old]
        for path, aside in zip(old, new, strict=True):
            path.rename(aside)
        return new[0]

    def open(self) -> None:
        """Begin to write."""
        self.lengths = []
        # A lone surrogate can't be encoded in UTF-8, but its escape is valid JSON.
        self._file = self.here.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, answers: Sequence[Prediction]) -> None:
        """Add the answers of one batch."""
        assert self._file is not None
        for answer in answers:
            line = json.dumps(answer_row(answer, self.choice), ensure_ascii=False, allow_nan=False)
            self._file.write(line.translate(_LINE_ENDS) + "\n")
        self._file.flush()
        self.lengths.append(len(answers))

    def close(self) -> bool:
        """End writing. May be called more than once.

        Returns:
            Whether the file still has the name that it was given. Another run that began meanwhile and writes
            to the same name has renamed it.
        """
        if self._file is None:
            return True
        mine = os.fstat(self._file.fileno())
        self._file.close()
        self._file = None
        return self.here.exists() and os.path.samestat(mine, self.here.stat())

    def join(self, lengths: Sequence[Sequence[int]]) -> None:
        """Join the parts of all processes, on the first one. The file appears whole or not at all.

        Args:
            lengths: The `lengths` of each process. Its batches take turns with those of the others.

        Raises:
            UserError: The part of another process can't be read, as on machines without a shared disk.
        """
        if self.world == 1:
            return
        parts = [self.part(rank) for rank in range(self.world)]
        unseen = [str(part) for part in parts if not part.exists()]
        if unseen:
            raise UserError(
                f"out: the answers of other machines are on their disks, as {', '.join(unseen)}; "
                "name a file on a disk that all of them share"
            )
        unfinished = self.path.with_name(f".unfinished-{self.path.name}")
        files = [part.open("rb") for part in parts]
        try:
            with unfinished.open("wb") as joined:
                for batch in range(max(map(len, lengths))):
                    for file, counts in zip(files, lengths, strict=True):
                        for _ in range(counts[batch] if batch < len(counts) else 0):
                            joined.write(file.readline())
        finally:
            for file in files:
                file.close()
        os.replace(unfinished, self.path)
        for part in parts:
            part.unlink()

    def first(self, count: int) -> list[dict[str, Any]]:
        """The first answers that this process sees in the file."""
        path = self.path if self.path.exists() else self.here
        rows: list[dict[str, Any]] = []
        with path.open(encoding="utf-8") as file:
            for line in file:
                if len(rows) == count:
                    break
                rows.append(json.loads(line))
        return rows


def _holds_answers(path: Path) -> bool:
    """Whether a file is one of ours, or empty, so that it may be renamed."""
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        row = json.loads(line) if line else dict.fromkeys(KEYS)
    except ValueError:  # not text, or not JSON
        return False
    return isinstance(row, dict) and set(_OF_ALL_VERSIONS) <= row.keys()
