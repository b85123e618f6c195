"""What the callbacks cost that compute nothing: they write files, or change a number between steps.

    python benchmarks/small_callbacks.py [--steps 80]

One run of VLMModule on `drawn-vlm` with drawn pictures, batch 32, everything trained, logged at every tenth
step, validated with short answers and saved at every fortieth. Counted is the processor's time of the
training thread inside each callback, as other tenants of a machine come and go: the median of ordinary steps,
and what logging takes beyond that in ten steps, and a checkpoint and a validation in forty.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_vlm import PredictionTable, TokenWeightSchedule, VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn

# isort: split
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import Profiler
from lightning_vlm_callbacks import EarlyStopCheckpoint, RunReport

BATCH, WARM, LOGGED, SAVED = 32, 5, 10, 40
"""Samples in a batch; steps not counted; how often is logged, and saved and validated."""
NAMES = ("EarlyStopCheckpoint", "RunReport", "TokenWeightSchedule", "PredictionTable")


class Clock(Profiler):
    """The processor's time of the training thread, for each action, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}
        self.step = 0
        self.of_steps: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))

    def start(self, action_name: str) -> None:
        self.began[action_name] = time.thread_time()

    def stop(self, action_name: str) -> None:
        took = time.thread_time() - self.began.pop(action_name)
        if action_name == "run_training_batch":
            self.step += 1
            self.of_steps["step"][self.step] += took
        for name in NAMES:
            if name in action_name and not action_name.endswith(("setup", "teardown", "on_train_end")):
                self.of_steps[name][self.step] += took


class TimedRunReport(RunReport):
    """With what it does as a logger counted too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def add_metrics(self, *arguments: Any) -> None:
        self.clock.start("RunReport as a logger")
        super().add_metrics(*arguments)
        self.clock.stop("RunReport as a logger")


def fit(steps: int, clock: Clock) -> None:
    module = VLMModule(
        "drawn-vlm",
        adapt=dict.fromkeys(("vision", "projector", "language"), "full"),
        no_gradient_needed=["model.model.vision_tower.post_layernorm"],
        generation={"max_new_tokens": 4},
    )
    tasks = ["vqa", "caption", "referring"]
    data = VLMDataModule(
        train=Drawn("train", size=BATCH * steps, tasks=tasks),
        val=Drawn("val", size=BATCH, tasks=tasks),
        batch_size=BATCH,
        num_workers=1,
    )
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=tempfile.mkdtemp(),
        logger=False,
        log_every_n_steps=LOGGED,
        val_check_interval=SAVED,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        profiler=clock,
        callbacks=[
            EarlyStopCheckpoint("val/loss", every_n_steps=SAVED),
            TokenWeightSchedule(),
            PredictionTable(samples=16),
            TimedRunReport(clock),
        ],
    ).fit(module, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    steps = parser.parse_args().steps
    clock = Clock()
    fit(steps, clock)
    counted = range(WARM, steps)
    ordinary = [at for at in counted if at % LOGGED and (at + 1) % LOGGED and (at - 1) % LOGGED]
    step = statistics.median(clock.of_steps["step"][at] for at in counted)
    table = Table(title=f"drawn-vlm, batch {BATCH}; a step takes {step * 1e3:.0f} ms of the processor")
    for column in ("", "ms a step", "of a step", "more for ten steps, ms", "more for forty, ms"):
        table.add_column(column, justify="right" if column else "left")
    for name in NAMES:
        times = clock.of_steps[name]
        usual = statistics.median(times[at] for at in ordinary)
        tens = [sum(times[at] - usual for at in range(t, t + LOGGED)) for t in range(LOGGED, steps, LOGGED)]
        forty = sum(times[at] - usual for at in range(WARM, WARM + SAVED))
        table.add_row(
            name,
            f"{usual * 1e3:.3f}",
            f"{usual / step:.3%}",
            f"{statistics.median(tens) * 1e3:.2f}",
            f"{forty * 1e3:.1f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
