"""Rows that are left out: a list that `lightning-vlm lint --fix skip` writes, and `data.skip` takes."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm_callbacks.whole_files import written_whole

from lightning_vlm.errors import UserError

KEY = "skip_list"
"""The key of the first line by which a file is known as such a list."""
_LAYOUT = "a list that `lightning-vlm lint --fix skip` has written"


class ListedFile(NamedTuple):
    """A file or data set some of whose rows are left out.

    Args:
        name: What errors call it.
        split: For what it was read: `train`, `val`, `test` or `predict`.
        fingerprint: Of its contents.
        rows: The rows, each as what stands behind the name of the file in its errors: `:7`, `:2[0]`.
    """

    name: str
    split: str
    fingerprint: str
    rows: frozenset[str]


class SkipList:
    """Which rows of which files are left out.

    Args:
        path: The file of the list.
        files: What it names.
    """

    def __init__(self, path: str, files: Sequence[ListedFile]) -> None:
        self.path = path
        self.files = files

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "SkipList":
        """Read a list.

        Raises:
            UserError: There is none, or it is something else.
        """
        real = os.path.realpath(path)
        try:
            changed = os.stat(real).st_mtime_ns
        except OSError:
            raise UserError(f"data.skip: found {path}, which does not exist; expected {_LAYOUT}") from None
        return _read(str(path), real, changed)

    def rows(self, name: str, fingerprint: str) -> Collection[str]:
        """The rows of a file that are left out.

        Args:
            name: What errors call it.
            fingerprint: Of its contents.

        Raises:
            UserError: The list was made for a file of this name with other contents.
        """
        for file in self.files:
            if file.fingerprint == fingerprint:
                return file.rows
        for file in self.files:
            if os.path.basename(file.name) == os.path.basename(name):
                raise UserError(
                    f"data.skip: {self.path} was made for {file.name} with other contents than {name} has "
                    f"now (fingerprint {file.fingerprint}, now {fingerprint}); expected a list of this "
                    "data: run lightning-vlm lint --fix skip again"
                )
        return ()

    def check(self, split: str, fingerprints: Collection[str]) -> None:
        """Raise if the list has files of a split, and the data of that split is none of them.

        Args:
            split: Which is opened.
            fingerprints: Of the files of its data.

        Raises:
            UserError: So it is.
        """
        listed = [file for file in self.files if file.split == split]
        if listed and not any(file.fingerprint in fingerprints for file in listed):
            raise UserError(
                f"data.skip: {self.path} was made for {listed[0].name}, which isn't data.{split} here; "
                "expected a list of this data: run lightning-vlm lint --fix skip again"
            )


def write_skip_list(path: Path, files: Sequence[ListedFile], why: Mapping[str, Iterable[str]]) -> None:
    """Write a list: a line of the files, then a line for each row.

    Args:
        path: The file. Its folder is made.
        files: What is left out of what.
        why: The kinds of faults of a row, by its name, as `file:line`.
    """
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        heads = [
            {"name": file.name, "split": file.split, "fingerprint": file.fingerprint, "rows": len(file.rows)}
            for file in files
        ]
        out.write(json.dumps({KEY: 1, "files": heads}) + "\n")
        for number, file in enumerate(files):
            for row in sorted(file.rows, key=lambda row: (len(row), row)):
                line = {"file": number, "row": row, "why": sorted(why.get(file.name + row, ()))}
                out.write(json.dumps(line) + "\n")


def fingerprint_of_file(path: str) -> str:
    """Of the contents of a file, whatever it is called."""
    digest = hashlib.blake2b(digest_size=12)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_skip_list(path: str | os.PathLike[str]) -> bool:
    """Whether a file is such a list, which may be written again."""
    try:
        with open(path, encoding="utf-8") as file:
            return KEY in json.loads(file.readline())
    except (OSError, ValueError, TypeError):
        return False


@cache
def _read(path: str, real: str, changed: int) -> SkipList:
    rows: list[set[str]] = []
    heads: list[dict[str, Any]] = []
    try:
        with open(real, encoding="utf-8") as file:
            head = json.loads(file.readline())
            heads = head["files"] if head[KEY] == 1 else []
            rows = [set() for _ in heads]
            for line in file:
                entry = json.loads(line)
                rows[entry["file"]].add(str(entry["row"]))
        files = [
            ListedFile(head["name"], head["split"], head["fingerprint"], frozenset(those))
            for head, those in zip(heads, rows, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"data.skip: found {path}, which is no such list; expected {_LAYOUT}") from None
    return SkipList(path, files)
