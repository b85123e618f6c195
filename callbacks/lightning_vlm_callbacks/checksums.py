"""Checksums of the files of a folder: written beside them, and compared before they are read."""

import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem

from lightning_vlm_callbacks.whole_files import finished_name, naming

__all__ = ["CHECKSUMS", "SummedFiles", "damage_in", "write_checksums"]

CHECKSUMS = "checksums.json"
"""The file that holds them: a dictionary from the name of a file to its CRC-32 in hexadecimal digits."""
_LARGEST = 16 << 20
"""Bytes of that file at most, those of a hundred thousand names. A larger one is damaged."""
_CHUNK = 4 << 20


class SummedFiles(FileSystem):
    """The file system of a torch writer, which knows the checksum of each file that it has written.

    They are computed as the files are written, so that nothing is read again.
    """

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}
        """Name of a file -> its CRC-32."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """Open a file, as torch's own."""
        with naming(finished_name(Path(path))), super().create_stream(path, mode) as stream:
            summed = _Summed(stream)
            yield summed
        if "w" in mode:
            self.sums[Path(path).name] = summed.sum

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Make a folder."""
        with naming(finished_name(Path(path))):
            super().mkdir(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Give a file another name."""
        super().rename(path, new_path)
        self.sums[Path(new_path).name] = self.sums.pop(Path(path).name)


class _Summed:
    """A file that is written from its beginning to its end, with the checksum of what it has been given."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sum = 0

    def write(self, content: Any) -> int:
        self.sum = zlib.crc32(content, self.sum)
        written: int = self._file.write(content)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def write_checksums(folder: Path, sums: Mapping[str, int]) -> None:
    """Write the checksums of a folder's files beside them."""
    text = json.dumps({name: f"{sums[name]:08x}" for name in sorted(sums)}, indent=0)
    with open(folder / CHECKSUMS, "w", encoding="utf-8") as file:
        file.write(text)


def damage_in(folder: Path, only: Collection[str] = (), *, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with the files of a folder; None if nothing is, or if the folder has no checksums.

    A file is read once for each of its states, a gigabyte in about a second.

    Args:
        folder: With the checksums of its files, or without them.
        only: The names of files to compare; all by default.
        rank: Of one of several processes that divide the files among them.
        ranks: How many processes do.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "piece").write_bytes(b"whole")
    >>> write_checksums(folder, {"piece": zlib.crc32(b"whole")})
    >>> damage_in(folder)
    >>> _ = (folder / "piece").write_bytes(b"whale")
    >>> damage_in(folder)
    'a file piece that was damaged or belongs to another checkpoint (its checksum differs); copy it again'
    """
    try:
        expected = _read_checksums(folder)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return f"a list of checksums ({CHECKSUMS}) that can't be read; copy the folder again"
    for name in sorted(expected)[rank::ranks]:
        if only and name not in only:
            continue
        try:
            about = (folder / name).stat()
            found = _sum_of(str((folder / name).resolve()), about.st_size, about.st_mtime_ns)
        except FileNotFoundError:
            return f"no file {name}, which its checksums name; copy the folder again"
        if found != expected[name]:
            return (
                f"a file {name} that was damaged or belongs to another checkpoint (its checksum differs); "
                "copy it again"
            )
    return None


def _read_checksums(folder: Path) -> dict[str, str]:
    with open(folder / CHECKSUMS, encoding="utf-8") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError("too long")
    found = json.loads(text)
    if not isinstance(found, dict) or not all(_is_name(name) for name in found):
        raise ValueError("not names of files")
    return found


def _is_name(name: str) -> bool:
    return Path(name).name == name and "\0" not in name


@lru_cache(maxsize=4096)
def _sum_of(path: str, size: int, changed: int) -> str:
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return f"{found:08x}"
