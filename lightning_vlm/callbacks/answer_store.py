"""What a run of `predict` leaves while it lasts: its answers, and how far it has come."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm.callbacks.answer_facts import changes
from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_progress import Progress, Step


class Unfinished(NamedTuple):
    """What an earlier run left on this process.

    Args:
        exists: Whether there is a run that was stopped.
        steps: How many of its batches can be kept; 0 of none.
        differs: What this run has otherwise; the run can't go on if there is anything.
    """

    exists: bool
    steps: int = 0
    differs: tuple[str, ...] = ()


class AnswerStore:
    """The files of a run, and its progress beside the first of them.

    Args:
        files: The file of answers, and others that grow with it.
        keeps_progress: Whether the run can go on if it is stopped.
    """

    def __init__(self, files: Sequence[AnswerFile], keeps_progress: bool = True) -> None:
        self.files = list(files)
        self.keeps_progress = keeps_progress
        self.steps: list[Step] = []
        """What each batch left, from the first on."""
        self._progress: Progress | None = None

    @property
    def answers(self) -> AnswerFile:
        """The file of answers."""
        return self.files[0]

    def unfinished(self, facts: Mapping[str, Any]) -> Unfinished:
        """What an earlier run left on this process, and whether this run is the same."""
        found = Progress(self.answers.here).read()
        if found is None:
            return Unfinished(False)
        before, steps = found
        differs = changes(before, facts)
        return Unfinished(True, len(self._whole(steps)), tuple(differs))

    def _whole(self, steps: Sequence[Step]) -> list[Step]:
        """The first steps, those whose lines are all in the files."""
        sizes = [file.here.stat().st_size if file.here.exists() else 0 for file in self.files]
        kept: list[Step] = []
        for step in steps:
            if len(step.sizes) != len(sizes) or any(a > b for a, b in zip(step.sizes, sizes, strict=True)):
                break
            kept.append(step)
        return kept

    def begin(self, facts: Mapping[str, Any], *, goes_on: bool) -> None:
        """Begin to write.

        Args:
            facts: What the answers depend on.
            goes_on: Whether behind what an earlier run left on this process.
        """
        self._progress = Progress(self.answers.here) if self.keeps_progress else None
        found = self._progress.read() if goes_on and self._progress else None
        self.steps = self._whole(found[1]) if found else []
        sizes = self.steps[-1].sizes if self.steps else [0] * len(self.files)
        for number, (file, size) in enumerate(zip(self.files, sizes, strict=True)):
            file.open([step.lengths[number] for step in self.steps], size)
        if self._progress is not None:
            self._progress.begin(facts, self.steps)

    def write(self, rows: Sequence[Iterable[Mapping[str, Any]]], step: Step) -> None:
        """Add the lines of one batch to each file, and then what else it leaves."""
        sizes = [file.write(lines) for file, lines in zip(self.files, rows, strict=True)]
        lengths = [file.lengths[-1] for file in self.files]
        step = step._replace(lengths=tuple(lengths), sizes=tuple(sizes))
        if self._progress is not None:
            self._progress.add(step)
        if self.keeps_progress or step.skipped:  # what comes in may never end
            self.steps.append(step)

    def close(self) -> bool:
        """End writing; see `AnswerFile.close`. May be called more than once."""
        if self._progress is not None:
            self._progress.close()
        kept = [file.close() for file in self.files]
        return all(kept)

    def finish(self, lengths: Sequence[Sequence[Sequence[int]]]) -> None:
        """Join the parts of all processes, on the first one, and forget the progress.

        Args:
            lengths: Of each process the `lengths` of each file.
        """
        for number, file in enumerate(self.files):
            file.join([of_rank[number] for of_rank in lengths])
        for rank in range(self.answers.world if self.keeps_progress else 0):
            part = self.answers.part(rank) if self.answers.world > 1 else self.answers.path
            Progress(part).delete()

    def set_aside(self) -> Path | None:
        """Rename what an earlier run left; see `AnswerFile.set_aside`."""
        aside = [file.set_aside() for file in self.files]
        return aside[0]


def unfinished_beside(folder: Path, name: str, facts: Mapping[str, Any]) -> Path | None:
    """Where the same run was stopped, in one of the folders beside its own.

    A logger gives each run a folder of its own, so that the same command has another folder the second time.

    Args:
        folder: Of this run.
        name: Of the file of answers.
        facts: What the answers depend on.

    Returns:
        The path of the file of answers, of the run that has come furthest.
    """
    stem, dot, suffix = name.rpartition(".")
    names = (f".{name}.progress", f".{stem}.rank-0{dot}{suffix}.progress")
    found = [file for name_of in names for file in folder.parent.glob(f"*/{name_of}")]
    same: list[tuple[int, float, Path]] = []
    for file in found:
        part = AnswerFile(file.with_name(file.name[1:].removesuffix(".progress")))
        read = Progress(part.path).read()
        if read is not None and read[1] and not changes(read[0], facts) and not part.is_writing():
            same.append((len(read[1]), file.stat().st_mtime, file.with_name(name)))
    return max(same)[2] if same else None
