"""What happens to a run of two processes when one of them fails, or when both are asked to stop.

    python -m tools.reliability.processes [CASE ...]

Each case is a run of `lightning-vlm fit` on the CPU, over gloo. Printed are the seconds from the fault until
no process is left, the exit codes, and the message that a person reads. A case is right if every process ends
within a minute, none of them with 0, and if the run that was saved goes on to the weights of one that was
never stopped, bit for bit.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

import lightning_vlm.run  # noqa: F401  # imported once, before processes are forked

# isort: split
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.support.ranks import free_port
from tools.reliability.forked_runs import (
    LIMIT,
    START,
    Outcome,
    Process,
    left_of,
    ranks_of_slurm,
    ranks_of_torchrun,
    wait_for_end,
)

RUN = """\
model:
  name_or_path: drawn-vlm
  adapt: {projector: full, language: {lora: {r: 4, dropout: 0.1}}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  schedule: {class_path: Constant}
data:
  train: {class_path: Drawn, init_args: {split: train, size: 40, tasks: [vqa]}}
  batch_size: 2
trainer:
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 6
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: EarlyStopCheckpoint
      init_args: {every_n_steps: 1, every_n_epochs: null, dirpath: kept}
"""
FAULT = """\
    - class_path: tools.reliability.processes.Fault
      init_args: {{what: {what}, rank: {rank}, to: {to}}}
"""
AT = 2
"""Optimizer steps before the fault."""
SLURM_AGAIN = 2
"""Steps after which SLURM, which has asked a job to requeue, ends it."""


class Fault(Callback):
    """Does something to a process of a run, after `AT` steps of training.

    Args:
        what: The name of a signal, or `exception`.
        rank: The process that does it; -1 is each of them.
        to: Who gets the signal: the process itself, or the one that started it.
    """

    def __init__(self, what: str, rank: int, to: Literal["self", "parent"]) -> None:
        self.what, self.rank, self.to = what, rank, to

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Strike."""
        if self.rank not in (-1, trainer.global_rank):
            return
        if trainer.global_step == AT:
            Path("struck").write_text(str(time.time()))
            if self.what == "exception":
                raise ValueError("planted")
            self._send(self.what)
        elif trainer.global_step == AT + SLURM_AGAIN and self.what == "SIGUSR1":
            self._send("SIGTERM")

    def _send(self, name: str) -> None:
        os.kill(os.getpid() if self.to == "self" else os.getppid(), signal.Signals[name])


def write_config(folder: Path, what: str = "", rank: int = 1, to: str = "self") -> None:
    """Write the config of a run, with a fault or without one."""
    folder.mkdir(exist_ok=True)
    fault = FAULT.format(what=what, rank=rank, to=to) if what else ""
    (folder / "run.yaml").write_text(RUN + fault)


def start(folder: Path, environments: list[dict[str, str]], *words: str) -> list[Process]:
    """Fork the processes of a run."""
    asked = ["fit", "--config", "run.yaml", *words]
    return [Process(asked, folder, one, f"rank{rank}") for rank, one in enumerate(environments)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run has kept last."""
    found: dict[str, torch.Tensor] = torch.load(folder / "kept" / "latest.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


def goes_on(folder: Path, whole: Path, environments: list[dict[str, str]]) -> bool:
    """Whether a run that was saved goes on to the weights of a whole one.

    Args:
        folder: Of the run that was stopped.
        whole: Of one that wasn't.
        environments: Of two new processes.
    """
    write_config(folder)
    (folder / "struck").unlink(missing_ok=True)
    resumed = wait_for_end(start(folder, environments, "--ckpt_path", "last"), folder)
    if resumed.codes != [0, 0]:
        print(resumed.text)
        return False
    expected, found = weights(whole), weights(folder)
    return expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def forked(folder: Path, what: str, rank: int = 1) -> Outcome:
    """A fault in a run of two processes as torchrun starts them."""
    write_config(folder, what, rank)
    return wait_for_end(start(folder, ranks_of_torchrun(free_port())), folder)


def slurm(folder: Path, what: str, rank: int = -1) -> Outcome:
    """A fault in a run of two processes as SLURM starts them."""
    write_config(folder, what, rank)
    return wait_for_end(start(folder, ranks_of_slurm(free_port(), folder)), folder)


def launched(folder: Path, what: str, rank: int = 1, *launcher: str, to: str = "self") -> Outcome:
    """A fault in a run that is started by the command alone, or by a launcher such as torchrun."""
    write_config(folder, what, rank, to)
    asked = [sys.executable, *(launcher or ("-m", "lightning_vlm")), "fit", "--config", "run.yaml"]
    output = folder / "launched.txt"
    with open(output, "wb") as file:
        process = subprocess.Popen(asked, cwd=folder, stdout=file, stderr=file, start_new_session=True)
    struck = folder / "struck"
    began = time.time()
    while process.poll() is None or left_of(process.pid):
        since = float(struck.read_text()) if struck.exists() else began
        if time.time() > since + (LIMIT if struck.exists() else START):
            break
        time.sleep(0.1)
    seconds = time.time() - (float(struck.read_text()) if struck.exists() else began)
    left = left_of(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return Outcome(seconds, [process.poll(), *([None] * len(left))], output.read_text(errors="replace"))


TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "lightning_vlm")
CASES: dict[str, Callable[[Path], Outcome]] = {
    "SIGTERM to one process": lambda folder: forked(folder, "SIGTERM"),
    "SIGTERM to all": lambda folder: forked(folder, "SIGTERM", -1),
    "SLURM pre-empts": lambda folder: slurm(folder, "SIGUSR1"),
    "an exception in one process": lambda folder: forked(folder, "exception"),
    "kill -9 of one process": lambda folder: forked(folder, "SIGKILL"),
    "kill -9 of the first process": lambda folder: forked(folder, "SIGKILL", 0),
    "kill -9, started by the command": lambda folder: launched(folder, "SIGKILL"),
    "kill -9, started by torchrun": lambda folder: launched(folder, "SIGKILL", 1, *TORCHRUN),
    "SIGTERM to torchrun": lambda folder: launched(folder, "SIGTERM", 0, *TORCHRUN, to="parent"),
}
SAVED = ("SIGTERM to one process", "SIGTERM to all", "SLURM pre-empts")
"""Cases whose run goes on bit for bit."""


def right(name: str, outcome: Outcome, folder: Path, whole: Path) -> bool:
    """Whether a case ended as it should."""
    if outcome.hung or outcome.seconds > LIMIT or 0 in outcome.codes:
        return False
    if name == "SLURM pre-empts" and (folder / "requeued.txt").read_text() != "requeue 77\n":
        return False
    if name not in SAVED:
        return True
    slurm_job = name.startswith("SLURM")
    port = free_port()
    return goes_on(folder, whole, ranks_of_slurm(port, folder) if slurm_job else ranks_of_torchrun(port))


def message(text: str) -> str:
    """What the command said at its end: the first of its errors."""
    found = [line for line in text.splitlines() if "error: " in line]
    return found[0][:160] if found else text.strip().splitlines()[-1][:160] if text.strip() else ""


def run(names: list[str]) -> tuple[Table, int]:
    """Try cases; a table of them, and how many are right."""
    table = Table(title="a run of two processes")
    for column in ("case", "seconds", "codes", "right", "message"):
        table.add_column(column, overflow="fold")
    number = 0
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        if set(names) & set(SAVED):
            write_config(whole)
            wait_for_end(start(whole, ranks_of_torchrun(free_port())), whole)
        for at, name in enumerate(names):
            folder = Path(place, str(at))
            outcome = CASES[name](folder)
            text = outcome.text
            is_right = right(name, outcome, folder, whole)
            number += is_right
            codes = " ".join(map(str, outcome.codes))
            table.add_row(
                name, f"{outcome.seconds:.1f}", codes, "yes" if is_right else "NO", escape(message(text))
            )
            if not is_right:
                print(f"{name}:\n{text[-4000:]}")
    return table, number


def main() -> int:
    """Print each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    names = parser.parse_args().case or list(CASES)
    table, number = run(names)
    Console(width=150).print(table)
    print(f"{number} of {len(names)} cases are right")
    return int(number < len(names))


if __name__ == "__main__":
    sys.exit(main())
