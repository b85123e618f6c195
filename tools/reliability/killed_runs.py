"""Runs of one or several processes that may be killed: forked, so that nothing is imported again."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support.ranks import end_process_group, free_port, leave, rank_environment, stacks_of, write_stacks

WAIT = 60.0
"""Seconds of the clock that the other processes have to notice that one is gone."""
MOST = 400.0
"""Seconds of the clock that a run may take on a busy machine."""

_fork = multiprocessing.get_context("fork")


class Ended(NamedTuple):
    """How a run ended.

    Args:
        codes: The exit code of each process; -9 was killed.
        late: Which processes didn't notice within `WAIT` seconds that another one was gone.
        results: What each process returned; None for one that didn't get so far.
    """

    codes: tuple[int | None, ...]
    late: tuple[int, ...]
    results: tuple[Any, ...]

    @property
    def was_killed(self) -> bool:
        """Whether any process was killed."""
        return -signal.SIGKILL in self.codes


def run(function: Callable[[int, Sequence[int]], Any], ranks: int, folder: Path) -> Ended:
    """Call a function in the processes of a run, until all of them have ended.

    Args:
        function: Gets its rank, and the ids of all processes of the run; returns primitives and tensors.
        ranks: How many processes.
        folder: Where what they return and print is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end_process_group()
    pids = _fork.Array("i", ranks)
    port = free_port()
    processes = []
    for rank in range(ranks):
        (folder / f"{rank}.pt").unlink(missing_ok=True)
        given = (rank, ranks, port, pids, folder, function)
        processes.append(_fork.Process(target=_rank, args=given))
    for process in processes:
        process.start()
    pids[:] = [process.pid for process in processes]
    late = _wait(processes, folder)
    results = []
    for rank in range(ranks):
        file = folder / f"{rank}.pt"
        results.append(torch.load(file, weights_only=True) if file.exists() else None)
    return Ended(tuple(process.exitcode for process in processes), late, tuple(results))


def _wait(processes: Sequence[Any], folder: Path) -> tuple[int, ...]:
    """Wait for all; end those that don't notice that another one has failed, and print where they stood."""
    began = time.monotonic()
    failed: float | None = None
    while any(process.is_alive() for process in processes):
        now = time.monotonic()
        if failed is None and any(process.exitcode not in (None, 0) for process in processes):
            failed = now
        if now - began > MOST or (failed is not None and now - failed > WAIT):
            late = [rank for rank, process in enumerate(processes) if process.is_alive()]
            print(stacks_of([processes[rank].pid for rank in late], folder))
            for rank in late:
                processes[rank].kill()
                processes[rank].join()
            return tuple(late)
        time.sleep(0.02)
    return ()


def _rank(rank: int, ranks: int, port: int, pids: Any, folder: Path, function: Callable[..., Any]) -> None:
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    write_stacks(folder, rank)
    rank_environment(rank, ranks, port)
    while 0 in pids[:]:
        time.sleep(0.001)
    result = function(rank, pids[:])
    torch.save(result, folder / f"{rank}.unfinished")
    os.replace(folder / f"{rank}.unfinished", folder / f"{rank}.pt")
    leave()
