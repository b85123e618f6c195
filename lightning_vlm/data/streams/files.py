"""Which shards a pattern names."""

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_vlm.data.read.folders import all_files, choose_split, is_saved, split_of
from lightning_vlm.data.read.hf_dataset import is_hub_name
from lightning_vlm.data.streams.tables import check_installed
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import did_you_mean

LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
ARROW = (".arrow", ".feather")
ARCHIVES = (".tar",)
SUFFIXES = (*LINES, *PARQUET, *ARROW, *ARCHIVES)
"""What shards end in."""
_PACKED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_FILES = 1_000_000


def shard_files(pattern: str, preferred: Sequence[str]) -> list[str]:
    """The shards that a pattern names, sorted where the pattern doesn't order them.

    Args:
        pattern: Of files, such as `shards/*.parquet` or `shards/{0000..0063}.tar`; a folder; an address such
            as `hf://datasets/ORG/NAME/data/train-*.parquet`; or the name of a data set on the hub.
        preferred: The splits that are read of a folder or a data set that has several, the first that is
            there.

    Raises:
        DataError: Nothing fits.
        UserError: What fits can't be read at any place, or there are several splits and none is preferred.
    """
    if "://" in pattern:
        files = _remote(pattern)
    elif os.path.isdir(pattern):
        files = _of_folder(pattern, preferred)
    elif is_hub_name(pattern) and not _is_pattern(pattern):
        files = _of_hub(pattern, preferred)
    else:
        files = [file for one in expand_braces(pattern) for file in _matching(one, pattern)]
    for file in files:
        check_suffix(file, pattern)
    return files


def expand_braces(pattern: str) -> list[str]:
    """The patterns without braces that one with braces stands for, as a shell would.

    Raises:
        UserError: They are too many.

    >>> expand_braces("{vqa,ocr}/{08..10}.tar")
    ['vqa/08.tar', 'vqa/09.tar', 'vqa/10.tar', 'ocr/08.tar', 'ocr/09.tar', 'ocr/10.tar']
    """
    found = list(itertools.islice(_expanded(pattern), _MOST_FILES + 1))
    if len(found) > _MOST_FILES:
        raise UserError(f"{pattern}: found more than {_MOST_FILES:,} names; expected fewer shards")
    return found


def can_stream(path: str) -> bool:
    """Whether what a path names may be shards, by its name alone."""
    return "://" in path or _is_pattern(path) or os.path.isdir(path) or path.lower().endswith(SUFFIXES)


def is_shards(path: str) -> bool:
    """Whether a path names several files or an archive, which are only read as shards."""
    is_file = os.path.exists(path)
    return (not is_file and ("://" in path or _is_pattern(path))) or path.lower().endswith(ARCHIVES)


def check_suffix(file: str, pattern: str) -> None:
    """Raise for a file that can't be read at any place.

    Raises:
        UserError: A file of another type than `SUFFIXES`, or a packed one.
    """
    name = file.lower()
    if "://" in name and not name.endswith(PARQUET):
        raise UserError(
            f"{file}: of files that aren't on this machine only parquet can be read at any place; download "
            f"it (`hf download` for the hub), or give the data set's parquet files"
        )
    if name.endswith(_PACKED):
        raise UserError(
            f"{file}: found a packed file, which can only be read from its beginning; unpack it, as "
            "`gunzip` does, or write parquet, which is packed in parts"
        )
    if not name.endswith(SUFFIXES):
        raise UserError(f"{pattern}: found {file}; expected shards that end in {', '.join(SUFFIXES)}")


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[{")


def _expanded(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    inside = found[1]
    if span := _RANGE.fullmatch(inside):
        first, last = span[1], span[2]
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        choices: Any = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    else:
        choices = inside.split(",")
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _matching(one: str, pattern: str) -> list[str]:
    """The files of a pattern without braces."""
    if not any(sign in one for sign in "*?["):
        if os.path.isfile(one):
            return [one]
        expected = f"the files of {pattern}" if one != pattern else "a shard"
        raise DataError(one, "", "no such file", f"{expected}{_near(one)}")
    files = sorted(file for file in glob.glob(one, recursive=True) if os.path.isfile(file))
    if not files:
        raise DataError(one, "", "no file that fits", f"shards, {_what_is_there(one)}")
    return files


def _near(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError:
        return f" in a folder that is there: {folder} isn't{_near_folder(folder)}"


def _near_folder(folder: str) -> str:
    above, name = os.path.split(folder)
    try:
        return did_you_mean(name, [one for one in os.listdir(above or ".") if Path(above, one).is_dir()])
    except OSError:
        return ""


def _what_is_there(pattern: str) -> str:
    """What lies where a pattern looks, for the end of an error."""
    folder = os.path.dirname(pattern)
    while any(sign in folder for sign in "*?["):
        folder = os.path.dirname(folder)
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError:
        return f"but the folder {folder} isn't there{_near_folder(folder)}"
    shards = [name for name in names if name.lower().endswith((*SUFFIXES, *_PACKED))]
    shown = ", ".join((shards or names)[:3])
    more = len(shards or names) - 3
    return f"such as {shown}{f' and {more:,} others' if more > 0 else ''}, which are in {folder or '.'}"


def _of_folder(folder: str, preferred: Sequence[str]) -> list[str]:
    """The shards of a folder, of one split."""
    if is_saved(folder):
        splits = [name for name in sorted(os.listdir(folder)) if is_saved(os.path.join(folder, name))]
        if splits:
            folder = os.path.join(folder, choose_split(splits, preferred, folder))
        return sorted(glob.glob(os.path.join(glob.escape(folder), "*.arrow")))
    by_split: dict[str, list[str]] = {}
    for file in all_files(folder):
        if file.lower().endswith(SUFFIXES):
            by_split.setdefault(split_of(os.path.relpath(file, folder)), []).append(file)
    if not by_split:
        raise DataError(folder, "", "no shard", f"files that end in {', '.join(SUFFIXES)}")
    return by_split[choose_split(by_split, preferred, folder)]


def _remote(pattern: str) -> list[str]:
    """The files of a pattern behind an address."""
    check_installed(pattern)  # it brings fsspec
    import fsspec

    scheme = pattern.partition("://")[0]
    files: list[str] = []
    try:
        for one in expand_braces(pattern):
            system, path = fsspec.core.url_to_fs(one)
            found = sorted(system.glob(path)) if _is_pattern(one) else [path]
            files += [system.unstrip_protocol(file) for file in found]
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        found_there = f"what can't be reached ({reason})"
        raise DataError(pattern, "", found_there, f"files behind {scheme}:// that are there") from None
    if not files:
        raise DataError(pattern, "", "no file that fits", f"parquet files behind {scheme}://")
    return files


def _of_hub(name: str, preferred: Sequence[str]) -> list[str]:
    """The files of a data set on the hub, of one split. Nothing is downloaded but their names."""
    check_installed(name)
    import datasets

    try:
        files = datasets.load_dataset_builder(name).config.data_files or {}
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        found = f"no such file or folder, and no data set on the hub that can be reached ({reason})"
        raise DataError(name, "", found, "shards, such as data/*.parquet, or a name on the hub") from None
    if not files:
        raise UserError(f"{name}: found a data set without files; expected one of parquet files")
    return [str(file) for file in files[choose_split(files, preferred, name)]]
