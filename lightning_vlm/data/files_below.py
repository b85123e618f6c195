"""Files that data names: found below a root, and nowhere else."""

import os
import re
from functools import lru_cache
from itertools import islice
from pathlib import Path

from lightning_vlm.errors import DataError
from lightning_vlm.nearest import nearest, shorten

_MOST_ENTRIES = 2000
"""How many entries of a folder are compared with the name of a missing file."""

# A single letter before the colon is a Windows drive, and Path merges two slashes into one.
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def find_below(
    path: Path,
    root: Path | None,
    source: str,
    key: str,
    what: str,
    *,
    folder: bool = False,
    advise: bool = True,
) -> Path:
    """Where a file is that data names. Looks, but does not open.

    Args:
        path: As it stands in the data. It is taken from `root` and must end below it when `..` and symbolic
            links are followed.
        root: None is the working directory.
        source: `file:line` for errors.
        key: Which part of the sample it is, for errors.
        what: What errors call it, such as `picture`.
        folder: Whether it may be a folder too.
        advise: Whether the error says which file or folder was probably meant, which takes some search.

    Returns:
        The real path of what exists.

    Raises:
        DataError: A URL, a path that leaves the root, no such file, or something that is not a plain file.
    """
    written = str(path)
    below = str(root or ".")
    if _URL.match(written):
        url = shorten(written).replace(":/", "://", 1)
        expected = f"the path of a file: {what}s are never fetched; download it and write its path"
        raise DataError(source, key, f"the URL {url}", expected)
    try:
        real_root = _real_root(os.path.join(os.getcwd(), below))
        real = os.path.realpath(os.path.join(real_root, written))
    except (OSError, ValueError) as error:  # such as a null byte
        raise DataError(source, key, f"{shorten(written)} ({error})", f"the path of a {what}") from None
    if not _is_below(real, real_root):
        found = f"{shorten(written)}, which is outside {shorten(below)}"
        expected = "a path below the image root, with links followed; data.image_root says where that is"
        if advise and os.path.isabs(written) and os.path.isfile(real):
            expected += f", and {shorten(os.path.dirname(real), 200)} has the file"
        raise DataError(source, key, found, expected, "missing_file")
    is_allowed = os.path.isfile(real) or (folder and os.path.isdir(real))
    if not is_allowed:
        problem = "is not a file" if os.path.exists(real) else "does not exist"
        found = f"{shorten(written)}, which {problem} (looked for {shorten(real, 200)})"
        expected = f"a {what} file below the image root {shorten(below)} (data.image_root)"
        if advise:
            expected += where_instead(written, real_root)
        raise DataError(source, key, found, expected, "missing_file")
    return Path(real)


def _is_below(real: str, real_root: str) -> bool:
    """Whether a real path is the root, lies below it, or is a file that a snapshot of the hub links to."""
    if real == real_root:
        return True
    folders = (os.path.join(real_root, ""), _hub_files(real_root))
    return real.startswith(folders)


@lru_cache(maxsize=64)
def _real_root(root: str) -> str:
    """The real path of an image root, which is needed for every picture."""
    return os.path.realpath(root)


@lru_cache(maxsize=64)
def _hub_files(real_root: str) -> str:
    """Where the files of a root lie to which the hub's cache links from its snapshots; else the root itself.

    >>> import tempfile
    >>> repository = Path(tempfile.mkdtemp(), "datasets--pets").resolve()
    >>> for name in ("blobs", "snapshots/12ab/images"):
    ...     (repository / name).mkdir(parents=True)
    >>> Path(_hub_files(str(repository / "snapshots/12ab/images"))).name
    'blobs'
    """
    repository, snapshots, _ = real_root.partition(f"{os.sep}snapshots{os.sep}")
    if snapshots:
        files = os.path.join(repository, "blobs", "")
        if os.path.isdir(files):
            return files
    return os.path.join(real_root, "")


def where_instead(path: str, root: str) -> str:
    """What a missing picture's path or root should probably be, to end an error with; or nothing.

    Args:
        path: As it stands in the data.
        root: The real path of the image root.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "train").mkdir()
    >>> (root / "train" / "cat.jpg").touch()
    >>> where_instead("train/cat.jpeg", str(root))
    "; did you mean 'train/cat.jpg'?"
    >>> where_instead("cat.jpg", str(root))
    "; it is below ...train': set data.image_root to that"
    """
    for folder in _other_roots(root):
        if os.path.isfile(os.path.join(folder, path)):
            return f"; it is below {folder!r}: set data.image_root to that"
    names = path.replace("\\", "/").split("/")
    for start in range(1, len(names)):
        shorter = "/".join(names[start:])
        if os.path.isfile(os.path.join(root, shorter)):
            return f"; did you mean {shorten(shorter)}?"
    folder = os.path.dirname(path)
    files = _files_in(os.path.join(root, folder))
    meant = nearest(os.path.basename(path), files)
    if meant is None:
        return ""
    return f"; did you mean {shorten(os.path.join(folder, meant))}?"


def _other_roots(root: str) -> list[str]:
    """The folders around and directly in the image root, and the working directory: those usually meant."""
    parents = [str(folder) for folder in Path(root).parents]
    try:
        folders = [entry.path for entry in _entries(root) if entry.is_dir()]
    except OSError:
        folders = []
    return [os.getcwd(), *parents[:3], *sorted(folders[:50])]


def _files_in(folder: str) -> list[str]:
    try:
        names = [entry.name for entry in _entries(folder) if entry.is_file()]
    except (OSError, ValueError):
        return []
    return sorted(names)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, _MOST_ENTRIES))
