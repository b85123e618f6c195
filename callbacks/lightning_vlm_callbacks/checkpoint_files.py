"""Checkpoint files of a Trainer: written whole or not at all, and not read if they were damaged since."""

import errno
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.checkpoint.api import CheckpointException
from typing_extensions import override

from lightning_vlm_callbacks.checksums import damage_in
from lightning_vlm_callbacks.whole_files import UNFINISHED, finished_name, naming, refusal, written_whole

__all__ = [
    "CheckpointError",
    "WholeCheckpointIO",
    "damage_of",
    "in_words",
    "is_zip",
    "newest_first",
    "newness",
    "or_else",
    "step_in_name",
    "use_whole_files",
]


_IS_FOLDER = 0x10
"""The bit of an archive's entry that says so; torch never sets it."""


class CheckpointError(MisconfigurationException):
    """A checkpoint can't be written, or was damaged. The message is for people."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when it is whole and safe on the disk.

    Lightning's own way holds it twice in memory, writes it into the folder of temporary files, which may be
    small, and copies it, so that a full disk leaves half of it under its name; and where permission is denied
    it writes nothing and says nothing. Addresses such as `s3://` are left to it.

    torch writes a checksum of each tensor and doesn't compare them when it reads; this does.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a file.

        Raises:
            CheckpointError: The disk is full, or permission is denied. What was there before stays.
        """
        if _is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            save_whole(checkpoint, Path(path))
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: {refusal(error)};\nthe checkpoints from before stay as they are, and ckpt_path "
                "goes on from one of them"
            ) from error

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file.

        Raises:
            CheckpointError: It isn't what was written.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location or _as_it_is, weights_only)
        if damage := damage_of(Path(path)):
            raise CheckpointError(f"checkpoint {path}: found {damage}{or_else(Path(path))}")
        try:
            return super().load_checkpoint(path, map_location or _as_it_is, weights_only)
        except (RuntimeError, EOFError) as error:
            if not re.search("PytorchStreamReader|Ran out of input", str(error)):
                raise
            raise CheckpointError(
                f"checkpoint {path}: found a file that is cut short or damaged{or_else(Path(path))}"
            ) from error


def use_whole_files(trainer: Trainer) -> None:
    """Let a Trainer write and read its checkpoint files so, if it does as Lightning does.

    Call it in `setup`; twice does no harm.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def save_whole(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint that is at its place whole or not at all, also if the machine crashes.

    Args:
        checkpoint: Anything that `torch.save` takes.
        path: Where. A name of an unfinished file is one that the caller gives another name when it is whole.

    Raises:
        OSError: It can't be written.
    """
    if path.name.startswith(UNFINISHED):
        with naming(finished_name(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(checkpoint, path)
        return
    with written_whole(path) as unfinished:
        _save(checkpoint, unfinished)


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())


def in_words(error: BaseException | None) -> str:
    """An error in a line; empty without one. torch's own puts the tracebacks of all ranks together."""
    if isinstance(error, CheckpointException):
        rank, (inner, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {in_words(inner)}"
    if isinstance(error, CheckpointError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError):
        return refusal(error)
    return "" if error is None else f"{type(error).__name__}: {error}"


def damage_of(path: Path) -> str | None:
    """What is wrong with the contents of a file that torch.save wrote; None if nothing is seen.

    All of it is read, once for each state of a file. One that torch wrote without checksums, or as before
    torch 1.6, can't be checked.
    """
    try:
        about = path.stat()
    except OSError:
        return None
    return _damage_of(str(path.resolve()), about.st_size, about.st_mtime_ns) if path.is_file() else None


@lru_cache
def _damage_of(path: str, size: int, changed: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(entry.CRC for entry in archive.infolist()):
                return None
            # torch reads nothing of what it takes for a folder, which zipfile tells by the name alone.
            folders = (one.filename for one in archive.infolist() if one.external_attr & _IS_FOLDER)
            damaged = next(folders, None) or archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place in front of the file, as a damaged header may name
            return None
        damaged = "a header"
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError):
        if not is_zip(path):  # cut short, or no such file: reading it says so
            return None
        damaged = "a header"
    if damaged is None:
        return None
    inside = damaged.partition("/")[2] or damaged
    return f"damaged contents ({inside} doesn't have the checksum it was written with); copy it again"


def is_zip(path: str | Path) -> bool:
    """Whether a file is an archive as torch.save writes it, though it may be damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it is one whose end is damaged
        return True


def or_else(path: Path) -> str:
    """`; ... is whole`, with the newest checkpoint beside one that isn't; nothing where there is none."""
    for other in newest_first(path.parent):
        is_another = not path.exists() or not other.samefile(path)
        if is_another and _is_whole(other):
            return f"; {other} is whole"
    return ""


def _is_whole(path: Path) -> bool:
    if path.is_dir():  # of a sharded run, which writes meta.pt last
        return (path / "meta.pt").is_file() and damage_in(path) is None
    return is_zip(path) and damage_of(path) is None


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder.

    Steps say which is newest; clocks, which may have been set, only where names say no step.
    """
    try:
        found = [file for file in folder.iterdir() if file.suffix == ".ckpt" and file.exists()]
        return sorted(found, key=newness, reverse=True)
    except OSError:
        return []


def newness(file: Path) -> tuple[int, float]:
    """What orders the checkpoints of one run."""
    return step_in_name(file.resolve()), file.stat().st_mtime


def step_in_name(path: str | Path) -> int:
    """The step that a checkpoint's name says; -1 if it says none.

    >>> [step_in_name(name) for name in ("step-00000120-v2.ckpt", "epoch=1-step=30.ckpt", "last.ckpt")]
    [120, 30, -1]
    """
    found = re.search(r"step[-=_](\d+)", Path(path).name)
    return int(found[1]) if found else -1


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)


def _as_it_is(storage: Any, location: str) -> Any:
    return storage
