"""Runs of two forked processes, which have nothing to import again, and what becomes of them."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_vlm.cli import main as command

LIMIT = 60.0
"""Seconds within which all processes must have ended."""
START = 400.0
"""Seconds within which a run must have come to its fault, or to its end."""


class Outcome(NamedTuple):
    """What became of a run.

    Args:
        seconds: From the fault to the end of the last process.
        codes: The exit code of each process, negative for a signal; None for one that had to be killed.
        text: What all of them wrote.
    """

    seconds: float
    codes: list[int | None]
    text: str

    @property
    def hung(self) -> bool:
        """Whether a process was left."""
        return None in self.codes


class Process:
    """A forked process that runs a command, its output in a file."""

    def __init__(self, words: list[str], folder: Path, environment: Mapping[str, str], name: str) -> None:
        self.output = folder / f"{name}.txt"
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, folder, environment)

    def _run(self, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        code = 1
        try:
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)  # others may be a test's own
            os.chdir(folder)
            os.environ.update(environment)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            code = command(words)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def code(self) -> int | None:
        """The exit code; None while the process runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def ranks_of_torchrun(port: int) -> list[dict[str, str]]:
    """The environments that torchrun gives to two processes."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    own = {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "faults"}
    return [{**shared, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def ranks_of_slurm(port: int, folder: Path) -> list[dict[str, str]]:
    """What `srun` gives to two tasks, with a `scontrol` that writes down what it is asked."""
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder / "requeued.txt"}\n')
    scontrol.chmod(0o755)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "vlm",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    return [{**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


def wait_for_end(processes: list[Process], folder: Path) -> Outcome:
    """Wait until all processes have ended, and kill those that are left `LIMIT` after the fault."""
    codes: list[int | None] = [None] * len(processes)
    began = time.time()
    struck = folder / "struck"
    while None in codes:
        codes = [one.code() if code is None else code for code, one in zip(codes, processes, strict=True)]
        late = time.time() > (
            float(struck.read_text() or began) + LIMIT if struck.exists() else began + START
        )
        if late:
            break
        time.sleep(0.05)
    seconds = time.time() - (float(struck.read_text()) if struck.exists() else began)
    for code, one in zip(codes, processes, strict=True):
        if code is None:
            one.kill()
    return Outcome(seconds, codes, "".join(one.output.read_text() for one in processes))


def left_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
