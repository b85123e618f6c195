"""What it costs to measure a run's throughput, and how often that makes the host wait.

    python benchmarks/throughput_monitor.py [--steps 60] [--device cuda]

Runs of the small shipped VLM through VLMModule, batch 32, everything trained and everything logged at *every*
step (by default every 50th). The contenders take turns, step by step, so that all meet the same machine; the
time of their hooks is held against the rest of the step (medians, in the same process). What
ThroughputMonitor hears through the profiler is timed apart, for all actions of a step, and added.

- "ThroughputMonitor": with operations, tokens, padding and waiting.
- "Lightning's": samples, lengths and one number of operations for every batch. On a GPU it waits for the
  device at each; `torch.cuda.synchronize` is counted.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule

# isort: split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ThroughputMonitor as LightningsMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning_vlm_callbacks import ThroughputMonitor
from lightning_vlm_callbacks.throughput_monitor.fetching import ProfilerListener

from lightning_vlm.data.drawn import Drawn

BATCH, WARM = 32, 5


class Actions(PassThroughProfiler):
    """Counts what a Trainer announces."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def start(self, action_name: str) -> None:
        self.seen[action_name] += 1


class Race(Callback):
    """Lets the contenders take turns, and times their hooks and the steps."""

    def __init__(self) -> None:
        self.contenders: dict[str, Any] = {
            "ThroughputMonitor": ThroughputMonitor(warmup_steps=0, print_summary=False),
            "Lightning's": LightningsMonitor(
                batch_size_fn=lambda batch: len(batch.lengths),
                length_fn=lambda batch: sum(batch.lengths),
                window_size=2,
            ),
        }
        self.hooks: defaultdict[str, list[float]] = defaultdict(list)
        self.steps: list[float] = []

    def setup(self, *arguments: Any, **options: Any) -> None:
        for one in self.contenders.values():
            one.setup(*arguments, **options)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.flops_per_batch = 10**12
        for one in self.contenders.values():
            one.on_train_start(trainer, pl_module)
        self.end = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *arguments: Any, **options: Any) -> None:
        name = list(self.contenders)[trainer.global_step % len(self.contenders)]
        start = time.perf_counter()
        self.contenders[name].on_train_batch_end(trainer, *arguments, **options)
        now = time.perf_counter()
        self.hooks[name].append(now - start)
        self.steps.append(start - self.end)
        self.end = now

    def on_train_end(self, *arguments: Any) -> None:
        self.contenders["ThroughputMonitor"].on_train_end(*arguments)


def seconds_of_listening(actions: list[str], repeats: int = 200) -> float:
    """What the listener adds to the announcements of a step."""
    profiler = PassThroughProfiler()

    def announce() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            for name in actions:
                profiler.start(name)
                profiler.stop(name)
        return (time.perf_counter() - start) / repeats

    bare = announce()
    listener = ProfilerListener(profiler, lambda what: None, lambda: None)
    heard = announce()
    listener.close()
    return heard - bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    race, profiler, waits = Race(), Actions(), []
    module = VLMModule(
        "drawn-vlm", adapt="full", no_gradient_needed=["model.model.vision_tower.post_layernorm"]
    )
    with tempfile.TemporaryDirectory() as folder, patch("torch.cuda.synchronize", lambda *_: waits.append(1)):
        trainer = Trainer(
            max_steps=given.steps,
            accelerator=given.device.replace("cuda", "gpu"),
            devices=1,
            logger=CSVLogger(folder),
            log_every_n_steps=1,
            callbacks=[race],
            profiler=profiler,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        source = Drawn("train", size=BATCH * given.steps, tasks=["vqa", "caption", "referring"])
        trainer.fit(module, VLMDataModule(train=source, batch_size=BATCH, num_workers=1))
    show(
        race,
        [name for name, count in profiler.seen.items() if count >= given.steps],
        given.device,
        len(waits),
    )


def show(race: Race, actions: list[str], device: str, waits: int) -> None:
    """Print the table."""
    step = statistics.median(race.steps[WARM:])
    table = Table(title=f"drawn-vlm, all of it trained, batch {BATCH}, {device}; a step: {step * 1e3:.0f} ms")
    for column in ("", "ms per step", "share of a step", "waits a step on a GPU"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in race.hooks.items():
        seconds = statistics.median(found[WARM:])
        ours = name == "ThroughputMonitor"
        seconds += seconds_of_listening(actions) if ours else 0
        waited = "0" if ours else "1" if device == "cpu" else f"{waits / len(found):.0f}"
        table.add_row(name, f"{seconds * 1e3:.3f}", f"{seconds / step:.3%}", waited)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
