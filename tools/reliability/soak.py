"""A long run with every callback on: do memory, open files, threads and the time of a step stay flat?

`python -m tools.reliability.soak --steps 20000` trains a tiny model, validates and saves now and then, and
prints for each figure its slope with a 95% interval, as it would be after 100,000 steps, about a day of
one-second steps. The first tenth of the run doesn't count: caches fill, and the allocator finds its size. It
ends with 1 if something grows.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from scipy import stats

from tests.support import tiny
from tools.reliability.full_run import Case, Length, fit, make_module

BLOCKS = 20
"""A run is divided into so many blocks, whose means are nearly independent of one another."""
A_DAY = 100_000
"""Steps after which a slope is printed."""
MOST: dict[str, float] = {
    "memory (MB)": 20.0,
    "open files": 1.0,
    "threads": 1.0,
    "objects": 5_000.0,
    "CPU time of a step (ms)": 2.0,
}
"""By how much each figure may grow in `A_DAY` steps, where the interval says that it grows at all."""


class Slope(NamedTuple):
    """How much something grows with each step: the estimate, and its 95% interval."""

    estimate: float
    lower: float
    upper: float


def slope_of(steps: Sequence[float], values: Sequence[float], blocks: int = BLOCKS) -> Slope:
    """The slope of a line through the means of blocks, which takes care of autocorrelation within a block.

    Args:
        steps: When each value was measured.
        values: As many.
        blocks: How many means the line goes through.

    >>> slope = slope_of(range(1000), [3.0 + 0.5 * step for step in range(1000)])
    >>> [round(number, 6) for number in slope]
    [0.5, 0.5, 0.5]
    """
    xs = [float(np.mean(block)) for block in np.array_split(np.asarray(steps, float), blocks)]
    ys = [float(np.mean(block)) for block in np.array_split(np.asarray(values, float), blocks)]
    if len(set(ys)) == 1:
        return Slope(0.0, 0.0, 0.0)
    line = stats.linregress(xs, ys)
    half = float(stats.t.ppf(0.975, blocks - 2) * line.stderr)
    return Slope(float(line.slope), float(line.slope) - half, float(line.slope) + half)


class Meter(Callback):
    """Measures the process every few steps, and keeps a line of each measurement in a file.

    Args:
        file: Of the lines.
        every: Steps between two measurements.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every
        self.rows: list[dict[str, float]] = []
        self._times: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self._times.append(time.process_time() - self._began)
        if len(self._times) < self.every:
            return
        gc.collect()
        row = {
            "step": float(trainer.global_step),
            "memory (MB)": _resident() / 1e6,
            "open files": float(len(os.listdir("/proc/self/fd"))),
            "threads": float(threading.active_count()),
            "objects": float(len(gc.get_objects())),
            "CPU time of a step (ms)": float(np.median(self._times)) * 1e3,
        }
        self._times.clear()
        self.rows.append(row)
        with self.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(steps: int, folder: Path, every: int) -> list[dict[str, float]]:
    """Run so many steps.

    Args:
        steps: Of the optimizer, each of one batch.
        folder: Where everything goes.
        every: Steps between two measurements.
    Returns:
        The measurements.
    """
    model = folder / "model"
    model.mkdir(parents=True)
    tiny.build("llava", model)
    gc.freeze()  # what the imports have made is neither looked through nor counted again and again
    meter = Meter(folder / "soak.jsonl", every)
    length = Length(
        steps=steps,
        samples=24,
        stages=(0, steps // 20, steps // 10),
        ranks_change=(steps // 20 + 10, int(steps * 0.7), max(steps // 20, 1)),
        save_every=max(steps // 40, 2),
        validate_every=max(steps // 100, 2),
        spoiled=steps // 100,  # the report of it imports much, which counts as the beginning
    )
    options = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": None, "log_every_n_steps": 10}
    fit(Case("lora"), make_module("lora", model), folder / "run", length, [meter], batch_size=1, **options)
    return meter.rows


def slopes_of(rows: Sequence[dict[str, float]]) -> dict[str, Slope]:
    """The slope of each figure, without the first tenth of the run."""
    counted = rows[len(rows) // 10 :]
    steps = [row["step"] for row in counted]
    return {name: slope_of(steps, [row[name] for row in counted]) for name in MOST}


def grows(name: str, slope: Slope) -> bool:
    """Whether a figure grows beyond chance, and by more than a run of a day may bear."""
    return slope.lower > 0 and slope.estimate * A_DAY > MOST[name]


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--out", type=Path, help="a new folder for the run, which is kept")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary, "soak")
        began = time.perf_counter()
        rows = soak(given.steps, folder, given.every)
        seconds = time.perf_counter() - began
    return report(rows, seconds)


def report(rows: Sequence[dict[str, float]], seconds: float) -> int:
    """Print the slopes and the verdict.

    Returns:
        The exit code: 1 if something grows.
    """
    table = Table(title=f"{rows[-1]['step']:,.0f} steps in {seconds / 60:.0f} minutes", title_justify="left")
    for name in ("figure", "at the start", "at the end", "after 100,000 steps (95%)", ""):
        table.add_column(name)
    bad = []
    for name, slope in slopes_of(rows).items():
        first, last = rows[len(rows) // 10][name], rows[-1][name]
        span = f"{slope.estimate * A_DAY:+.2f} ({slope.lower * A_DAY:+.2f} to {slope.upper * A_DAY:+.2f})"
        if grows(name, slope):
            bad.append(name)
        table.add_row(name, f"{first:,.1f}", f"{last:,.1f}", span, "grows" if name in bad else "flat")
    Console(width=110).print(table)
    print(f"grows: {', '.join(bad)}" if bad else "nothing grows")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
