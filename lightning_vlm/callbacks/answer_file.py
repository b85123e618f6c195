"""A file of answers: one JSON object a line, written as answers come, in the order of the data."""

import glob
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from lightning_vlm_callbacks.whole_files import naming, written_whole

from lightning_vlm.callbacks.answer_progress import Progress
from lightning_vlm.callbacks.answer_rows import holds_answers, line_of
from lightning_vlm.errors import UserError
from lightning_vlm.outputs.writable import require_writable

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks
    fcntl = None  # type: ignore[assignment]


class AnswerFile:
    """The file of a run; with several processes each writes a part of its own beside it.

    Each batch is flushed, so a process that is killed loses no answer. The parts are joined at the end, and
    have gone then.

    Args:
        path: Where the answers go.
        rank: This process.
        world: The number of processes.
        is_ours: Whether a file that has the name already is of the kind that is written, so that it may be
            renamed.
    """

    def __init__(
        self, path: Path, rank: int = 0, world: int = 1, is_ours: Callable[[Path], bool] = holds_answers
    ) -> None:
        self.path, self.rank, self.world, self._is_ours = path, rank, world, is_ours
        self._file: BinaryIO | None = None
        self.lengths: list[int] = []
        """How many lines each batch had, from the first on."""

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
            UserError: The path is a folder, a file that holds no answers, can't be written to, or is being
                written by another run.
        """
        if self.path.is_dir():
            raise UserError(f"out: found the folder {self.path}; expected the name of a file in it")
        if self.path.exists() and not self._is_ours(self.path):
            raise UserError(
                f"out: found {self.path}, which isn't a file of answers and stays as it is; name another file"
            )
        require_writable("out", self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_another_run()

    def _refuse_another_run(self) -> None:
        if self.is_writing():
            raise UserError(
                f"out: another run is writing {self.here}; wait until it ends, or name another file"
            )

    def set_aside(self) -> Path | None:
        """Rename the answers of an earlier run, those in parts too if it was stopped.

        Returns:
            A new name; None if there were none.
        """
        stem, suffix = self.path.stem, self.path.suffix
        parts = self.path.parent.glob(f"{glob.escape(stem)}.rank-*{glob.escape(suffix)}")
        old = [path for path in (self.path, *sorted(parts)) if path.exists()]
        self._refuse_another_run()
        for path in old:
            Progress(path).delete()
        if not old:
            return None
        number = 1
        while list(self.path.parent.glob(f"{glob.escape(stem)}.previous-{number}*")):
            number += 1
        new = [path.with_name(path.name.replace(stem, f"{stem}.previous-{number}", 1)) for path in old]
        for path, aside in zip(old, new, strict=True):
            path.rename(aside)
        return new[0]

    def open(self, lengths: Sequence[int] = (), size: int = 0) -> None:
        """Begin to write, behind what is kept.

        Args:
            lengths: How many lines each batch has that is kept.
            size: How many bytes they have.
        """
        self.lengths = list(lengths)
        with naming(self.here):
            self._file = self.here.open("r+b" if size else "wb")
            self._file.truncate(size)
            self._file.seek(size)
        _try_lock(self._file)

    def is_writing(self) -> bool:
        """Whether another process that is alive writes the part of this one."""
        if not self.here.exists():
            return False
        with self.here.open("r+b") as file:
            return not _try_lock(file)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Add the lines of one batch.

        Returns:
            How many bytes the file has then.
        """
        assert self._file is not None
        lines = [line_of(row) for row in rows]
        with naming(self.here):
            self._file.write(b"".join(lines))
            self._file.flush()
        self.lengths.append(len(lines))
        return self._file.tell()

    def close(self) -> bool:
        """End writing. May be called more than once.

        Returns:
            Whether the file still has the name that it was given. Another run that began meanwhile and writes
            to the same name has renamed it.
        """
        if self._file is None:
            return True
        mine = os.fstat(self._file.fileno())
        with suppress(OSError):  # of what couldn't be written, which was an error then
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
        files = [part.open("rb") for part in parts]
        try:
            with written_whole(self.path) as unfinished, unfinished.open("wb") as joined:
                for batch in range(max(map(len, lengths))):
                    for file, counts in zip(files, lengths, strict=True):
                        for _ in range(counts[batch] if batch < len(counts) else 0):
                            joined.write(file.readline())
        finally:
            for file in files:
                file.close()
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
                row = json.loads(line)
                if "error" not in row:  # of what came in and couldn't be read
                    rows.append(row)
        return rows


def _try_lock(file: BinaryIO) -> bool:
    """Lock a file against other processes; the lock ends with the process, even by SIGKILL."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
