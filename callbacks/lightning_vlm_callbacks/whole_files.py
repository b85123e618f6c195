"""Files that others see whole or not at all, and errors of the disk that name the file."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "UNFINISHED",
    "check_writable",
    "finished_name",
    "naming",
    "refusal",
    "write_whole",
    "written_whole",
]

UNFINISHED = ".unfinished-"
"""The prefix of names of unfinished files, which no search for checkpoints matches."""
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside a file, in a folder that is made, for what takes the file's place if all goes well.

    If not, it is gone, and the file is what it was. A device or a pipe, such as `/dev/null`, is written
    itself, and so is what a link points at.

    Args:
        path: The file.

    Raises:
        OSError: It can't be written; its `filename` is `path`.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "page.html")
    >>> with written_whole(file) as unfinished:
    ...     _ = unfinished.write_text("whole")
    >>> file.read_text()
    'whole'
    """
    with naming(path):
        target = path.resolve()
        if target.exists() and not target.is_file():
            yield target  # a folder is refused when it is opened
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{UNFINISHED}{target.name}")
        try:
            yield unfinished
            os.replace(unfinished, target)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that others see whole or not at all, in a folder that is made for it."""
    with written_whole(path) as unfinished:
        # A lone surrogate, as of a model's answer, can't be encoded.
        unfinished.write_text(text, "utf-8", errors="backslashreplace")


def finished_name(path: Path) -> Path:
    """Where what is written lies in the end: a path without the prefix of unfinished names.

    >>> finished_name(Path(".unfinished-step-00000003.ckpt/meta.pt")).as_posix()
    'step-00000003.ckpt/meta.pt'
    """
    return Path(*(part.removeprefix(UNFINISHED) for part in path.parts))


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let errors of the system that are raised inside name the file that a person knows.

    Args:
        path: The file or folder; not the temporary one that is written in fact.

    >>> with naming("answers.jsonl"):
    ...     raise OSError(28, "No space left on device", "/tmp/tmp1234")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'answers.jsonl'
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own behind that of a file that it writes to.
        found = error if isinstance(error, OSError) else error.__context__
        if not isinstance(found, OSError) or found.errno is None:
            raise
        if found.filename == str(path):
            raise found from None
        raise OSError(found.errno, found.strerror, str(path)) from found


def check_writable(path: Path) -> None:
    """Find out whether a file can be written, before the work whose result it is; nothing is written.

    Args:
        path: The file. Its folder needn't be there.

    Raises:
        OSError: It can't; its `filename` is `path`.
    """
    given, path = path, path.absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    reason = 0
    if there == path and path.is_dir():
        reason = errno.EISDIR
    elif there != path and not there.is_dir():
        reason = errno.ENOTDIR
    elif hasattr(os, "statvfs") and os.statvfs(there).f_flag & os.ST_RDONLY and not path.is_char_device():
        reason = errno.EROFS
    elif not os.access(there, os.W_OK | os.X_OK if there != path else os.W_OK):
        reason = errno.EACCES
    if reason:
        raise OSError(reason, os.strerror(reason), str(given))


def refusal(error: OSError) -> str:
    """In words: why the system doesn't write a file, with the disk that is full.

    >>> refusal(PermissionError(13, "Permission denied", "/x/report.jsonl"))
    "/x/report.jsonl can't be written (permission denied)"
    """
    what = f"{error.filename} can't be written" if error.filename else "a file can't be written"
    if error.errno in FULL:
        return f"the disk is full: {what}{_room(error.filename)}"
    if error.errno == errno.EROFS:
        return f"the disk is read-only: {what}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{what} (found a file where a folder is needed)"
    reason = error.strerror or str(error)
    return f"{what} ({reason[:1].lower()}{reason[1:]})"


def _room(path: str | None) -> str:
    """` (/data has 1.2 MB free)`; nothing where that isn't known."""
    try:
        place = Path(path or "").resolve()
        while not os.path.ismount(place):
            place = place.parent
        free = shutil.disk_usage(place).free
    except OSError:
        return ""
    return f" ({place} has {free / 1e6:,.1f} MB free)"
