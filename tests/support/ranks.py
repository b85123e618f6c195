"""Real ranks of a distributed run, on one machine: functions called in several processes, over gloo."""

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import ProcessContext, start_processes

DDP: dict[str, Any] = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
"""Options of a Trainer on one of two ranks, whose data are already those of its rank."""
LIMIT = 300
"""Seconds after which ranks that wait for each other are killed."""


def call_on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """Call a function in several processes at once.

    They are forked, so that nothing is imported again and closures need no pickling. Within them, a Trainer
    with `strategy="ddp"` and `devices=ranks` is one rank of a run, and `init_process_group("gloo")` finds the
    others.

    Args:
        function: Returns primitives and tensors. Its rank is `os.environ["RANK"]`.
        arguments: Its arguments.
        ranks: How many processes; one is a process like any other, without a group.

    Returns:
        What each of them returned.

    Raises:
        ProcessRaisedException: One of them failed; the message has its traceback.
        ProcessExitedException: One of them was killed.
        TimeoutError: They did not end within `LIMIT` seconds, as one that waits for the others does.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = ranks, free_port(), Path(folder), function, arguments
        started = start_processes(_rank, given, ranks, join=False, start_method="fork")
        try:
            _wait_for(started)
        finally:
            for process in started.processes:
                process.kill()  # a process that is left would keep the tests from ending
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(ranks)]


def _wait_for(started: ProcessContext) -> None:
    deadline = time.monotonic() + LIMIT
    while not started.join(timeout=1):
        if time.monotonic() > deadline:
            alive = [rank for rank, process in enumerate(started.processes) if process.is_alive()]
            raise TimeoutError(f"ranks {alive} have not ended within {LIMIT} seconds")


def _rank(
    rank: int, ranks: int, port: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    rank_environment(rank, ranks, port)
    torch.save(function(*arguments), folder / f"{rank}.pt")


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
