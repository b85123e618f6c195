"""What it costs to look for NaN and infinity at every training step.

    python benchmarks/nonfinite_guard.py [--steps 40] [--device cuda]

One run of VLMModule on `drawn-vlm` with drawn pictures, batch 32, every parameter trained, fused AdamW,
clipped. The contenders take turns step by step, as other tenants of a machine come and go:
- "nothing": the step alone.
- "guard": NonFiniteGuard.
- "guard, rollback": the same with copies to the CPU every 100 steps; what the other steps cost.
- "isfinite": the usual way, `torch.isfinite(p.grad).all().item()` for each parameter.
- "anomaly": Lightning's `detect_anomaly=True`.

Printed are the median step, its ratio to "nothing", the median time inside the contender's own hooks as a
share of the step, and how many numbers the host reads for a step beyond those that the step itself reads.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn

# isort: split
from lightning.pytorch import Callback, Trainer
from lightning_vlm_callbacks import NonFiniteGuard

BATCH, WARM = 32, 4
"""Samples in a batch; rounds not counted."""
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")


class IsFinite(Callback):
    """The usual way."""

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all().item():
                raise ValueError("NaN or infinity in a gradient")


class Anomaly(Callback):
    """As `Trainer(detect_anomaly=True)`, for one step."""

    def on_train_batch_start(self, *_: Any) -> None:
        torch.autograd.set_detect_anomaly(True)

    def on_train_batch_end(self, *_: Any) -> None:
        torch.autograd.set_detect_anomaly(False)


class Reads(TorchDispatchMode):
    """Counts numbers that the host reads from tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Turns(Callback):
    """Gives each step to the next contender, and writes down what it took.

    Args:
        contenders: Callbacks by name.
        device: The host waits for it before each look at the clock.
        reads: Counts along, if given.
    """

    def __init__(self, contenders: dict[str, Callback], device: str, reads: Reads | None = None) -> None:
        self.contenders, self.device, self.reads = contenders, device, reads
        self.names, self.step = list(contenders), 0
        self.steps: dict[str, list[float]] = defaultdict(list)
        self.hooks: dict[str, list[float]] = defaultdict(list)
        self.counts: dict[str, list[int]] = defaultdict(list)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def give(self, hook: str, *arguments: Any) -> None:
        began = self.now()
        getattr(self.contenders[self.name], hook)(*arguments)
        self.inside += self.now() - began

    @property
    def name(self) -> str:
        return self.names[self.step % len(self.names)]

    def setup(self, *arguments: Any, **named: Any) -> None:
        for one in self.contenders.values():
            one.setup(*arguments, **named)

    def on_train_start(self, *arguments: Any) -> None:
        for one in self.contenders.values():
            one.on_train_start(*arguments)

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.inside, self.began = 0.0, self.now()
        self.read = self.reads.count if self.reads else 0
        self.give("on_train_batch_start", *arguments)

    def on_before_backward(self, *arguments: Any) -> None:
        self.give("on_before_backward", *arguments)

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self.give("on_before_optimizer_step", *arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.give("on_train_batch_end", *arguments)
        if self.step >= WARM * len(self.names):
            self.steps[self.name].append(self.now() - self.began)
            self.hooks[self.name].append(self.inside)
        if self.reads:
            self.counts[self.name].append(self.reads.count - self.read)
        self.step += 1


def contenders() -> dict[str, Callback]:
    folder = tempfile.mkdtemp()
    return {
        "nothing": Callback(),
        "guard": NonFiniteGuard(dirpath=folder),
        "guard, rollback": NonFiniteGuard("rollback", dirpath=folder, snapshot_every_n_steps=10**9),
        "isfinite": IsFinite(),
        "anomaly": Anomaly(),
    }


def fit(turns: Turns, steps: int, device: str) -> None:
    module = VLMModule(
        "drawn-vlm",
        adapt=dict.fromkeys(("vision", "projector", "language"), "full"),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True),
        no_gradient_needed=["model.model.vision_tower.post_layernorm"],
    )
    source = Drawn("train", size=BATCH * 16, tasks=["vqa", "caption", "referring"])
    Trainer(
        accelerator=device.replace("cuda", "gpu"),
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[turns],
    ).fit(module, VLMDataModule(train=source, batch_size=BATCH, num_workers=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each contender")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    with Reads() as reads:
        counted = Turns(contenders(), given.device, reads)
        fit(counted, 3 * len(counted.names), given.device)
    turns = Turns(contenders(), given.device)
    fit(turns, (WARM + given.steps) * len(turns.names), given.device)
    table = Table(title=f"drawn-vlm, batch {BATCH}, {given.device}, {given.steps} steps of each")
    for column in ("", "step, ms", "ratio", "hooks, ms", "of the step", "reads"):
        table.add_column(column, justify="right" if column else "left")
    base = statistics.median(turns.steps["nothing"])
    for name in turns.names:
        step, hooks = statistics.median(turns.steps[name]), statistics.median(turns.hooks[name])
        reads_more = counted.counts[name][-1] - counted.counts["nothing"][-1]
        table.add_row(
            name,
            f"{step * 1e3:.1f}",
            f"{step / base:.3f}",
            f"{hooks * 1e3:.2f}",
            f"{hooks / base:.1%}",
            str(reads_more),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
