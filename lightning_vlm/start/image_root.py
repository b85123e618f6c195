"""Where the pictures of a data file lie: `data.image_root`."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_vlm.errors import DataError

_SAMPLE = 300
"""How many paths are looked for."""
_MOST_FILES = 100_000
"""How many files below a folder are compared with them."""
_SHOWN = 3


class ImageRoot(NamedTuple):
    """Where pictures and videos lie.

    Args:
        folder: The folder that their paths begin at.
        there: How many of the paths that were looked for are there.
        missing: Those that aren't.
    """

    folder: str
    there: int
    missing: tuple[str, ...]


def find_image_root(paths: Sequence[str], file: str) -> ImageRoot | None:
    """Find the folder below which most pictures of a file are.

    Args:
        paths: Of pictures and videos, as the file has them.
        file: The data file, or a folder of data.

    Returns:
        The folder; None where the file names no pictures by path.

    Raises:
        DataError: None of the pictures is anywhere around the file.
    """
    unique = list(dict.fromkeys(paths))
    step = max(1, len(unique) // _SAMPLE)
    sample = unique[::step][:_SAMPLE]
    if not sample:
        return None
    home = file if os.path.isdir(file) else os.path.dirname(file) or "."
    absolute = [path for path in sample if os.path.isabs(path)]
    if absolute:
        folders = [os.path.dirname(path) for path in absolute if os.path.exists(path)]
        likely = [os.path.commonpath(folders)] if folders else []
    else:
        likely = [home, ".", *_around(home)]
    best = max((_looked(folder, sample) for folder in dict.fromkeys(likely)), key=_there, default=None)
    for around in (home, os.path.relpath(os.path.dirname(os.path.abspath(home)))):
        if best is None or (best.missing if around == home else not best.there):
            others = [_looked(folder, sample) for folder in _by_names(sample, around)]
            best = max([*([best] if best else []), *others], key=_there, default=None)
    if best is None or not best.there:
        shown = ", ".join(map(repr, sample[:_SHOWN]))
        more = ", ..." if len(sample) > _SHOWN else ""
        raise DataError(
            file,
            "",
            f"{len(unique):,} pictures that aren't there: {shown}{more}",
            f"them below {os.path.abspath(home)}, or --image_root DIR, the folder that these paths begin at",
        )
    return best


def looked_for(paths: Sequence[str], folder: str) -> ImageRoot:
    """What is there of some pictures below a folder that the user named."""
    return _looked(folder, list(dict.fromkeys(paths))[:_SAMPLE])


def _there(root: ImageRoot) -> int:
    return root.there


def _looked(folder: str, paths: Sequence[str]) -> ImageRoot:
    real = os.path.realpath(folder)
    missing = []
    for path in paths:
        found = os.path.realpath(os.path.join(real, path))
        if not (os.path.exists(found) and (found + os.sep).startswith(os.path.join(real, ""))):
            missing.append(path)
    return ImageRoot(folder, len(paths) - len(missing), tuple(missing))


def _around(home: str) -> list[str]:
    """The folders beside and in the one of the file."""
    folders = _folders_in(home)
    parent = os.path.dirname(os.path.abspath(home))
    return [*folders, os.path.relpath(parent), *_folders_in(os.path.relpath(parent))]


def _folders_in(folder: str) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []
    return [os.path.normpath(os.path.join(folder, name)) for name in names[:100] if not name.startswith(".")]


def _by_names(paths: Sequence[str], home: str) -> list[str]:
    """Folders below one that have files which end like some of these paths, the most frequent first."""
    wanted: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        parts = Path(path).parts
        wanted.setdefault(parts[-1], []).append(parts)
    votes: Counter[str] = Counter()
    seen = 0
    for folder, folders, names in os.walk(home):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(names)
        if seen > _MOST_FILES:
            break
        above = Path(folder).parts
        for name in sorted(wanted.keys() & set(names)):
            for parts in wanted[name]:
                inner = parts[:-1]
                if not inner:
                    votes[folder] += 1
                elif above[-len(inner) :] == inner:
                    votes[str(Path(*above[: -len(inner)])) if above[: -len(inner)] else "."] += 1
    return [folder for folder, _ in votes.most_common(5)]
