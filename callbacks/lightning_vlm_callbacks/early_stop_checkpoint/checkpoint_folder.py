"""A folder of checkpoints in which files appear whole or not at all, even if the machine crashes."""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lightning_vlm_callbacks.whole_files import UNFINISHED

__all__ = ["CheckpointFolder", "Kept", "name_of", "step_of"]

BEST, LATEST = "best.ckpt", "latest.ckpt"


def name_of(step: int, version: int = 1) -> str:
    """The name of a step's checkpoint.

    Args:
        step: The number of optimizer steps made.
        version: Above 1 if steps are counted from 0 again in the same folder.

    >>> name_of(120), name_of(120, 2)
    ('step-00000120.ckpt', 'step-00000120-v2.ckpt')
    """
    suffix = f"-v{version}" if version > 1 else ""
    return f"step-{step:08d}{suffix}.ckpt"


def step_of(name: str) -> int:
    """The step of a checkpoint's name.

    >>> step_of("step-00000120-v2.ckpt")
    120
    """
    return int(name.removeprefix("step-").removesuffix(".ckpt").split("-")[0])


class Kept(NamedTuple):
    """The checkpoints of a run, by name. All are in `files`, oldest first."""

    files: tuple[str, ...] = ()
    periodic: tuple[str, ...] = ()
    best: str | None = None

    @property
    def latest(self) -> str | None:
        """The newest."""
        return self.files[-1] if self.files else None

    def add(self, name: str, best: bool, periodic: bool) -> "Kept":
        """With one more; `name` may be there already, if no step was made since.

        >>> Kept().add("a", best=True, periodic=False).add("b", best=False, periodic=True)
        Kept(files=('a', 'b'), periodic=('b',), best='a')
        """
        files = [*(file for file in self.files if file != name), name]
        periodics = [file for file in self.periodic if file != name]
        if periodic:
            periodics.append(name)
        return Kept(tuple(files), tuple(periodics), name if best else self.best)

    def prune(self, keep_periodic: int | None) -> "Kept":
        """Without those to delete: all but the best, the latest and the last `keep_periodic` periodic ones.

        >>> Kept(("a", "b", "c", "d"), periodic=("b", "c"), best="a").prune(keep_periodic=1)
        Kept(files=('a', 'c', 'd'), periodic=('c',), best='a')
        """
        first = 0 if keep_periodic is None else max(len(self.periodic) - keep_periodic, 0)
        kept = self._replace(periodic=self.periodic[first:])
        return kept.only({*kept.periodic, self.best, self.latest})

    def only(self, names: Collection[str | None]) -> "Kept":
        """Without those that aren't among `names`."""
        files = tuple(file for file in self.files if file in names)
        periodic = tuple(file for file in self.periodic if file in names)
        return Kept(files, periodic, self.best if self.best in names else None)


class CheckpointFolder:
    """The files of one run. One process works on it.

    Args:
        path: The folder, on a local disk. It is made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear_unfinished(self) -> None:
        """Delete files that a killed run left unfinished."""
        for path in self.path.glob(f"{UNFINISHED}*"):
            _delete(path)

    def set_aside(self, ours: Collection[str], resumed: bool) -> Path | None:
        """Move the checkpoints of other runs to a folder of their own, so that runs don't mix.

        Where this run doesn't resume, everything else that another run has left is moved too.

        Args:
            ours: Names of this run's checkpoints.
            resumed: Links and history are this run's.
        Returns:
            Where they are now; None if there were none.
        """
        others = []
        for path in self.path.glob("step-*.ckpt"):
            if re.fullmatch(r"step-\d{8,}(-v\d+)?\.ckpt", path.name) and path.name not in ours:
                others.append(path)
        if not resumed:
            rest = [self.path / name for name in (BEST, LATEST, "history.csv", "history.png")]
            others += [path for path in rest if os.path.lexists(path)]
        if not others:
            return None
        number = 1
        while (aside := self.path / f"previous-{number}").exists():
            number += 1
        aside.mkdir()
        for path in others:
            path.rename(aside / path.name)
        _sync(self.path)
        return aside

    def adopt(self, file: Path) -> None:
        """Give a checkpoint of another folder a place in this one too, without copying where the disk can."""
        aside = self.unfinished(file.name)
        self.path.mkdir(parents=True, exist_ok=True)
        _delete(aside)
        if file.is_dir():
            shutil.copytree(file, aside, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(file), str(aside))
        self.publish(file.name)

    def unfinished(self, name: str) -> Path:
        """Where to write what `publish` will give its name."""
        return self.path / f"{UNFINISHED}{name}"

    def publish(self, name: str) -> None:
        """Give a file or folder, written and safe on the disk, its name.

        A run that was killed before a link pointed at it may have left one of that name, which is replaced.
        """
        aside = self.unfinished(name)
        for folder, _, files in os.walk(aside):
            for file in files:
                _sync(Path(folder, file))
            _sync(Path(folder))
        if aside.is_file():
            _sync(aside)
        before = self.path / name
        if before.is_dir() and not before.is_symlink():  # which can't be replaced at once, as a file can
            os.replace(before, self.unfinished(f"old-{name}"))
            _delete(self.unfinished(f"old-{name}"))
        os.replace(aside, before)
        _sync(self.path)

    def write(self, name: str, text: str) -> None:
        """A small file."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.unfinished(name).write_text(text, "utf-8")
        self.publish(name)

    def link(self, link: str, name: str | None) -> None:
        """Point a link to a checkpoint beside it, or remove it."""
        if name is None:
            (self.path / link).unlink(missing_ok=True)
            return
        new = self.unfinished(link)
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        os.replace(new, self.path / link)
        _sync(self.path)

    def delete(self, names: Collection[str]) -> None:
        """Delete checkpoints. They lose their names first, so that none is ever seen half deleted."""
        for name in names:
            if (self.path / name).exists():
                os.replace(self.path / name, self.unfinished(name))
                _delete(self.unfinished(name))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
