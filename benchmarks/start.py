"""How soon a command answers: seconds, and seconds of CPU, until its help, and until a first training step.

    python benchmarks/start.py [--runs 5]

Each command runs in a process of its own, in turns, with its output thrown away; the median of all runs
counts. The rivals are run where they are installed. "first step" is a whole `fit` of one step of four drawn
pictures on the model in this package, from the command to the end of the process.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

FIT = (
    "fit --model.name_or_path drawn-vlm --data.train Drawn --data.train.size 16 --data.batch_size 4 "
    "--trainer.max_steps 1 --trainer.logger false --trainer.enable_checkpointing false"
)
TRL = "import sys, lightning_vlm_callbacks; from trl.cli import main; sys.argv[0] = 'trl'; sys.exit(main())"
"""Its command, which without `lightning_vlm_callbacks` ends with an error beside a torch without CUDA."""

COMMANDS = {
    "lightning-vlm --help": ["lightning-vlm", "--help"],
    "lightning-vlm fit --help": ["lightning-vlm", "fit", "--help"],
    "lightning-vlm fit --help-all": ["lightning-vlm", "fit", "--help-all"],
    "lightning-vlm families": ["lightning-vlm", "families"],
    "lightning-vlm fit: first step": ["lightning-vlm", *FIT.split()],
    "trl sft --help": [sys.executable, "-c", TRL, "sft", "--help"],
    "llamafactory-cli help": ["llamafactory-cli", "help"],
    "swift sft --help": ["swift", "sft", "--help"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}
"""What is run, by its name in the table."""


class Cost(NamedTuple):
    """What a process took."""

    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Seconds of CPU, of it and its children."""


def main() -> None:
    """Run all in turns, and print the medians."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--runs", type=int, default=5)
    runs = options.parse_args().runs
    there = {name: words for name, words in COMMANDS.items() if find(words[0])}
    if find_spec("trl") is None:
        del there["trl sft --help"]
    costs: dict[str, list[Cost]] = {name: [] for name in there}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            for name, words in there.items():
                costs[name].append(run(words, folder))
    console = Console()
    load = ", ".join(f"{figure:.1f}" for figure in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, load {load}, median of {runs} runs", highlight=False)
    table = Table("command", "seconds", "CPU seconds", box=None)
    for name in COMMANDS:
        table.add_row(name, *_cells(costs.get(name)))
    console.print(table)


def find(program: str) -> str | None:
    """A program, beside this Python's or on the path."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.is_file() else shutil.which(program)


def run(words: Sequence[str], folder: str) -> Cost:
    """Run a command in a folder.

    Raises:
        SystemExit: It fails; its last words are shown.
    """
    program = find(words[0])
    before = os.times()
    done = subprocess.run([str(program), *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Cost(after.elapsed - before.elapsed, cpu)


def _cells(costs: Sequence[Cost] | None) -> list[str]:
    if not costs:
        return ["not installed", ""]
    return [f"{statistics.median(figures):.2f}" for figures in zip(*costs, strict=True)]


if __name__ == "__main__":
    main()
