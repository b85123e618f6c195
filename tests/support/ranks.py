"""Real ranks of a distributed run, on one machine: functions called in several processes, over gloo."""

import faulthandler
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed
from torch.multiprocessing import ProcessContext, start_processes

DDP: dict[str, Any] = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
"""Options of a Trainer on one of two ranks, whose data are already those of its rank."""
LIMIT = 200
"""Seconds after which ranks that wait for each other are killed."""
STACKS = signal.SIGUSR2
"""Makes a rank write where each of its threads stands."""


def call_on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Call a function in several processes at once.

    They are forked, so that nothing is imported again and closures need no pickling. Within them, a Trainer
    with `strategy="ddp"` and `devices=ranks` is one rank of a run, and `init_process_group("gloo")` finds the
    others. A process that has threads may be forked while one of them holds a lock, which nobody then gives
    back. Ranks that hang are therefore started once more, with a warning that says where they stood.

    Args:
        function: Returns primitives and tensors. Its rank is `os.environ["RANK"]`.
        arguments: Its arguments.
        ranks: How many processes; one is a process like any other, without a group.

    Returns:
        What each of them returned.

    Raises:
        ProcessRaisedException: One of them failed; the message has its traceback.
        ProcessExitedException: One of them was killed.
        TimeoutError: They did not end within `LIMIT` seconds, twice, as one that waits for the others does.
    """
    try:
        return _call(function, arguments, ranks)
    except TimeoutError as error:
        warnings.warn(f"started once more: {error}", stacklevel=2)
        return _call(function, arguments, ranks)


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], ranks: int) -> list[Any]:
    end_process_group()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = ranks, free_port(), folder, function, arguments
        started = start_processes(_rank, given, ranks, join=False, start_method="fork")
        try:
            _wait_for(started, folder)
        finally:
            for process in family([process.pid for process in started.processes]):
                process.kill()  # a process that is left would keep the tests from ending
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def end_process_group() -> None:
    """End the process group of this process, if there is one, as Lightning leaves it behind a run.

    Ranks that are forked would take it for their own, and wait for its threads, which they haven't.
    """
    if has_process_group():
        torch.distributed.destroy_process_group()


def has_process_group() -> bool:
    """Whether this process is a rank."""
    return torch.distributed.is_initialized()


def _wait_for(started: ProcessContext, folder: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not started.join(timeout=1):
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(started.processes) if process.is_alive()]
            stacks = stacks_of([started.processes[rank].pid for rank in alive], folder)
            raise TimeoutError(f"ranks {alive} have not ended within {LIMIT} seconds\n{stacks}")


def write_stacks(folder: Path, rank: int) -> None:
    """Make this process and those that it starts write where they stand, whenever they get `STACKS`."""
    faulthandler.register(STACKS, file=open(folder / f"{rank}.stacks", "w"), all_threads=True)  # noqa: SIM115


def stacks_of(pids: Iterable[int | None], folder: Path) -> str:
    """Where processes and those that they started stand.

    Args:
        pids: Of processes that have called `write_stacks`.
        folder: What they were given.
    """
    for process in family(pids):
        process.send_signal(STACKS)
    time.sleep(1)
    return "\n".join(f"{file.name}:\n{file.read_text()}" for file in sorted(folder.glob("*.stacks")))


def family(pids: Iterable[int | None]) -> list[psutil.Process]:
    """Of processes, those that run, with all that they have started."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
    return found


def _rank(
    rank: int, ranks: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    write_stacks(folder, rank)
    rank_environment(rank, ranks, port)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    leave()


def leave() -> None:
    """End a forked process without what Python does at its end: it waits for threads of the parent's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def rank_environment(rank: int, ranks: int, port: int) -> None:
    """Make this process one of several ranks, for Lightning and torch."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_WORLD_SIZE=str(ranks),
            GROUP_RANK="0",
            TORCHELASTIC_RUN_ID="test",  # Lightning then takes the ranks from the environment
        )


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
