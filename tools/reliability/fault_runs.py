"""Runs of the real command in which the machine fails, and what a person reads then."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import lightning_vlm.run  # noqa: F401  # imported once, before processes are forked

# isort: split
from lightning.pytorch import Callback, Trainer

from tools.reliability.forked_runs import Process
from tools.reliability.processes import RUN

MOST_LINES = 3
"""Of a message."""


class Said(NamedTuple):
    """What a command said.

    Args:
        code: Its exit code, negative for a signal.
        text: All of it.
    """

    code: int
    text: str

    @property
    def error(self) -> str:
        """Its error message, all lines; empty without one."""
        found = re.search(r"lightning-vlm(?: \(rank \d+\))?: error: (.*)", self.text, re.DOTALL)
        return found[1].strip() if found else ""

    def warnings(self, pattern: str) -> list[str]:
        """The lines of warnings that a pattern fits."""
        lines = [line for line in self.text.splitlines() if line.startswith(("warning:", "note"))]
        return [line for line in lines if re.search(pattern, line)]


class Verdict(NamedTuple):
    """What became of a case.

    Args:
        read: What a person reads.
        wrong: What isn't as it should be; empty if all is.
    """

    read: str
    wrong: tuple[str, ...] = ()


STRUCK = "struck"
"""The file that says when the machine failed, in the folder that a run was started in."""
Case = Callable[[Path, Path], Verdict]
"""Given a folder of its own, and that of a run of six steps that was never disturbed."""


def judge(read: str, **right: bool) -> Verdict:
    """A verdict of conditions, by what each says."""
    return Verdict(read, tuple(name.replace("_", " ") for name, holds in right.items() if not holds))


class Strike(Callback):
    """Does something to the machine as a step begins.

    Args:
        at: Optimizer steps before.
        what: `fill` a disk, make it `read-only`, `delete` a folder, `limit` the size of files that a process
            may write, `raise` an exception, or `kill` a data worker.
        place: The disk or the folder.
        leave: Bytes that stay free, or that a file may have.
        rank: The process that does it; -1 is each of them.
    """

    def __init__(self, at: int, what: str, place: str = "", leave: int = 0, rank: int = 0) -> None:
        self.at, self.what, self.place, self.leave, self.rank = at, what, place, leave, rank

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Strike."""
        if trainer.global_step != self.at or self.rank not in (-1, trainer.global_rank):
            return
        Path(STRUCK).write_text(str(time.time()))
        if self.what == "raise":
            raise ValueError("planted")
        if self.what == "limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.leave, self.leave))
        elif self.what == "read-only":
            set_read_only(Path(self.place))
        elif self.what == "fill":
            fill(Path(self.place), self.leave)
        elif self.what == "delete":
            shutil.rmtree(self.place)
        elif self.what == "kill":
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def strike(at: int, what: str, place: Path | str = "", leave: int = 0, rank: int = 0) -> dict[str, Any]:
    """The entry of a config."""
    given = {"at": at, "what": what, "place": str(place), "leave": leave, "rank": rank}
    return {"class_path": f"{Strike.__module__}.Strike", "init_args": given}


def write_config(
    folder: Path,
    *,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Any = (),
    steps: int = 6,
    **data: Any,
) -> None:
    """Write `run.yaml`: a run on one process that saves each step in `kept`.

    Args:
        folder: Where.
        trainer: Further keys, or others.
        callbacks: More of them; with None there is no EarlyStopCheckpoint either.
        steps: How long it is.
        data: Further keys.
    """
    config = yaml.safe_load(RUN)
    keeper = config["trainer"]["callbacks"][0]
    keeper["init_args"]["keep_periodic"] = None
    config["trainer"] |= {"devices": 1, "strategy": "auto", "max_steps": steps, "log_every_n_steps": 1}
    config["trainer"]["callbacks"] = [keeper, *callbacks] if callbacks is not None else []
    config["trainer"] |= trainer or {}
    config["data"] |= data
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def start(folder: Path, *words: str | Path, **environment: str) -> Process:
    """Begin a command in a folder; what it says goes into a file beside the folder."""
    number = len(list(folder.parent.glob(f"{folder.name}.said-*")))
    return Process([str(word) for word in words], folder, environment, f"../{folder.name}.said-{number}")


def end(process: Process) -> Said:
    """Wait for a command's end."""
    _, status = os.waitpid(process.pid, 0)
    return Said(os.waitstatus_to_exitcode(status), process.output.read_text(errors="replace"))


def run(folder: Path, *words: str | Path, **environment: str) -> Said:
    """Run a command in a folder, to its end."""
    return end(start(folder, *words, **environment))


def fill(disk: Path, leave: int = 0) -> None:
    """Leave a disk so many bytes."""
    about = os.statvfs(disk)
    rest = about.f_bavail * about.f_frsize - leave
    with open(disk / "filler", "ab", buffering=0) as file:
        while rest > 0:
            try:
                rest -= file.write(b"x" * min(rest, 1 << 16))
            except OSError:
                return


@contextmanager
def small_disk(place: Path, mib: int = 24) -> Iterator[Path]:
    """A disk of its own, in memory. It needs the right to mount: root, or `unshare --user -rm` before."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        while place.is_mount():
            subprocess.run(["umount", "--lazy", place], check=True)


def set_read_only(disk: Path) -> None:
    """Let nothing be written to a disk any more, not even by root, but by those who write to it now."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)


def set_writable(disk: Path) -> None:
    """Undo `set_read_only`."""
    subprocess.run(["umount", "--lazy", disk], check=True)


def may_mount(place: Path) -> bool:
    """Whether disks can be made here."""
    try:
        with small_disk(place / "try"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def weights(folder: Path, name: str = "kept/latest.ckpt") -> dict[str, torch.Tensor]:
    """What a run has kept last."""
    found: dict[str, torch.Tensor] = torch.load(folder / name, weights_only=True)["state_dict"]
    return found


def same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Whether weights are equal bit for bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def is_short(message: str) -> bool:
    """Whether a person reads a message."""
    return 0 < len(message.splitlines()) <= MOST_LINES and "Traceback" not in message
