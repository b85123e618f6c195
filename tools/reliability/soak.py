"""A long run with every callback on: do memory, open files, threads and the time of a step stay flat?

`python -m tools.reliability.soak --steps 20000` trains a tiny model, validates and saves now and then, and
prints for each figure its slope in percent per 10,000 steps, with a 95% interval. The first tenth of the run
doesn't count: caches fill, and the allocator finds its size. It ends with 1 if something grows.

Other programs may keep the machine busy meanwhile. So the time of a step is that of the processor, of all
threads of the process, and the same step is also counted in units of a fixed calculation that is timed beside
it: a processor whose caches and cores are shared slows both down. Slopes are those of Theil and Sen, which a
few slow moments don't move.
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
"""A run is divided into so many blocks, whose medians are nearly independent of one another."""
SPAN = 10_000
"""Steps after which a slope is printed."""
MOST: dict[str, float] = {
    "memory (MB)": 0.3,
    "open files": 1.0,
    "threads": 1.0,
    "objects": 0.5,
    "CPU time of a step (ms)": 2.0,
    "the same, in fixed calculations": 2.0,
    "with saving and validation (ms)": 2.0,
}
"""By how many percent each figure may grow in `SPAN` steps."""


class Slope(NamedTuple):
    """By how many percent something grows in `SPAN` steps: the estimate, and its 95% interval."""

    estimate: float
    lower: float
    upper: float


def slope_of(steps: Sequence[float], values: Sequence[float], blocks: int = BLOCKS) -> Slope:
    """The slope of Theil and Sen through the medians of blocks, as a share of the median of all values.

    Medians of blocks take care of autocorrelation within a block, and the slope, the median of those between
    any two blocks, of blocks in which the machine was busy.

    Args:
        steps: When each value was measured.
        values: As many.
        blocks: How many medians the slope is of.

    >>> slope = slope_of(range(1000), [50 + 0.001 * step for step in range(1000)])
    >>> [round(number, 1) for number in slope]
    [19.8, 19.8, 19.8]
    """
    xs = [float(np.median(block)) for block in np.array_split(np.asarray(steps, float), blocks)]
    ys = [float(np.median(block)) for block in np.array_split(np.asarray(values, float), blocks)]
    middle = float(np.median(values))
    if len(set(ys)) == 1:
        return Slope(0.0, 0.0, 0.0)
    found = stats.theilslopes(ys, xs, alpha=0.95)
    return Slope(
        *(100 * SPAN * float(one) / middle for one in (found.slope, found.low_slope, found.high_slope))
    )


class FixedCalculation:
    """A little of what a step does, the same each time: small layers forward and backward, and Python."""

    def __init__(self) -> None:
        layers = [part for _ in range(8) for part in (torch.nn.Linear(64, 64), torch.nn.GELU())]
        self.layers = torch.nn.Sequential(*layers)
        self.input = torch.full((32, 64), 0.1)

    def seconds(self) -> float:
        """Do it once, and return what it took of the processor, in seconds."""
        began = time.process_time()
        self.layers(self.input).sum().backward()
        json.loads(json.dumps({str(number): [number] * 4 for number in range(200)}))
        return time.process_time() - began


class Meter(Callback):
    """Measures the process every few steps, and keeps a line of each measurement in a file.

    Args:
        file: Of the lines.
        every: Steps between two measurements.
    """

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every
        self.rows: list[dict[str, float]] = []
        self._fixed = FixedCalculation()
        self._steps: list[float] = []
        self._shares: list[float] = []
        self._ended = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        step = time.process_time() - self._ended
        self._steps.append(step)
        self._shares.append(step / self._fixed.seconds())
        if len(self._steps) == self.every:
            self._write_row(trainer.global_step)
        self._ended = time.process_time()

    def _write_row(self, step: int) -> None:
        gc.collect()
        row = {
            "step": float(step),
            "memory (MB)": _resident() / 1e6,
            "open files": float(len(os.listdir("/proc/self/fd"))),
            "threads": float(threading.active_count()),
            "objects": float(len(gc.get_objects())),
            "CPU time of a step (ms)": float(np.median(self._steps)) * 1e3,
            "the same, in fixed calculations": float(np.median(self._shares)),
            "with saving and validation (ms)": float(np.mean(self._steps)) * 1e3,
        }
        self._steps.clear()
        self._shares.clear()
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
        stages=(0, steps // 40, steps // 20),
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


def verdict(name: str, slope: Slope) -> str:
    """What a slope says of a figure: `grows`, `flat`, or `not certain` where the interval is too wide."""
    if slope.upper <= MOST[name]:
        return "flat"
    return "grows" if slope.lower > 0 and slope.estimate > MOST[name] else "not certain"


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--out", type=Path, help="a new folder for the run, which is kept")
    parser.add_argument(
        "--of", type=Path, help="only report on a run's soak.jsonl, also of one that was stopped"
    )
    given = parser.parse_args(words)
    if given.of is not None:
        return report([json.loads(line) for line in given.of.read_text().splitlines()])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary, "soak")
        rows = soak(given.steps, folder, given.every)
    return report(rows)


def report(rows: Sequence[dict[str, float]]) -> int:
    """Print the slopes and the verdict.

    Returns:
        The exit code: 1 if something grows.
    """
    table = Table(title=f"{rows[-1]['step']:,.0f} steps", title_justify="left")
    for name in ("figure", "at the start", "at the end", f"% per {SPAN:,} steps (95%)", ""):
        table.add_column(name)
    verdicts = {}
    for name, slope in slopes_of(rows).items():
        first, last = rows[len(rows) // 10][name], rows[-1][name]
        verdicts[name] = verdict(name, slope)
        span = f"{slope.estimate:+.2f} ({slope.lower:+.2f} to {slope.upper:+.2f})"
        table.add_row(name, f"{first:,.1f}", f"{last:,.1f}", span, verdicts[name])
    Console(width=110).print(table)
    growing = [name for name, said in verdicts.items() if said == "grows"]
    print(f"grows: {', '.join(growing)}" if growing else "nothing grows")
    return 1 if growing else 0


if __name__ == "__main__":
    sys.exit(main())
