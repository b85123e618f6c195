"""What a test must not leave behind, because the next tests of its process would meet it.

A process group or the variables of a rank would make the next run a rank of another, its files would be
looked for in another working directory, and a thread might hold a lock when a process is forked.
"""

import os
import threading
from typing import NamedTuple

from tests.support.ranks import end_process_group, has_process_group

OF_A_RANK = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
"""Variables that Lightning and torch take for those of a rank."""


class Surroundings(NamedTuple):
    """What tests of a process share.

    Args:
        folder: The working directory.
        of_a_rank: Which variables of a rank are set.
        threads: Those that the interpreter waits for at its end, with their names.
    """

    folder: str
    of_a_rank: dict[str, str]
    threads: dict[int, str]

    @classmethod
    def now(cls) -> "Surroundings":
        """What they are at this moment."""
        of_a_rank = {name: os.environ[name] for name in OF_A_RANK if name in os.environ}
        threads = {id(one): one.name for one in threading.enumerate() if not one.daemon}
        return cls(os.getcwd(), of_a_rank, threads)

    def left_since(self) -> list[str]:
        """Take back what has been left behind since, but for threads, and say what it was.

        Nothing is said of variables of a rank, which Lightning leaves behind even after a run of one process.
        """
        found = []
        if has_process_group():
            end_process_group()
            found.append("a process group of torch.distributed; run a Trainer with ddp in `on_two_ranks`")
        now = Surroundings.now()
        if now.folder != self.folder:
            os.chdir(self.folder)
            found.append(f"the working directory {now.folder}; use `monkeypatch.chdir`")
        if now.of_a_rank != self.of_a_rank:
            for name in OF_A_RANK:
                os.environ.pop(name, None)
            os.environ.update(self.of_a_rank)
        found += [f"the thread {name}" for number, name in now.threads.items() if number not in self.threads]
        return found
