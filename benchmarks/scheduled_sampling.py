"""What a first pass over each batch costs: a step of ScheduledSampling against an ordinary step.

    python benchmarks/scheduled_sampling.py [--steps 80] [--device cuda]

Runs of the small shipped VLM through VLMModule, batch 32, by what trains. The contenders take turns, step by
step, so that all meet the same machine (medians, in the same process):
- "plain": `ScheduledSampling` at probability 0, which does nothing.
- "likeliest", "drawn": at probability 0.25, with either kind of predictions.
- "all logits": a first pass by the model's own forward, which makes the logits of every token and takes the
  likeliest; its tokens are thrown away.
"""

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule

# isort: split
from lightning.pytorch import Callback, Trainer

from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling
from lightning_vlm.data.drawn import Drawn

BATCH, WARM, PROBABILITY = 32, 8, 0.25
CONTENDERS = ("plain", "likeliest", "drawn", "all logits")
PLANS: dict[str, dict[str, Any]] = {
    "everything": {"adapt": dict.fromkeys(("vision", "projector", "language"), "full")},
    "projector and LoRA": {"adapt": {"projector": "full", "language": {"lora": {"r": 16}}}},
    "the same, gradient checkpointing": {
        "adapt": {"projector": "full", "language": {"lora": {"r": 16}}},
        "gradient_checkpointing": True,
    },
}


class Race(Callback):
    """Lets the contenders take turns, and times their steps."""

    def __init__(self, device: str) -> None:
        self.device, self.sampling = device, ScheduledSampling(0.0, "constant")
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.changed: list[float] = []

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.sampling.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        name = self.name = CONTENDERS[trainer.global_step % len(CONTENDERS)]
        sampling, gold = self.sampling, batch.inputs["input_ids"]
        sampling.probability = PROBABILITY if name in ("likeliest", "drawn") else 0.0
        sampling.predictions = "drawn" if name == "drawn" else "likeliest"
        self.start = self.now()
        if name == "all logits":
            with torch.no_grad():
                pl_module.model(**batch.inputs, use_cache=False).logits.argmax(2)
        sampling.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if name == "likeliest":
            changed = (batch.inputs["input_ids"] != gold).sum() / len(batch.targets.positions)
            self.changed.append(float(changed))

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds[self.name].append(self.now() - self.start)


def race(plan: str, steps: int, device: str) -> Race:
    """The times of all contenders."""
    one = Race(device)
    module = VLMModule(
        "drawn-vlm", no_gradient_needed=["model.model.vision_tower.post_layernorm"], **PLANS[plan]
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator=device.replace("cuda", "gpu"),
        devices=1,
        logger=False,
        callbacks=[one],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    source = Drawn("train", size=BATCH * steps, tasks=["vqa", "caption", "referring"])
    trainer.fit(module, VLMDataModule(train=source, batch_size=BATCH))
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for plan in PLANS:
        found = race(plan, given.steps, given.device)
        spent = {name: statistics.median(found.seconds[name][WARM // 4 :]) for name in CONTENDERS}
        table = Table(title=f"{plan} trained, {given.device}")
        for column in ("", "ms per step", "× plain"):
            table.add_column(column, justify="right" if column else "left")
        for name, seconds in spent.items():
            table.add_row(name, f"{seconds * 1e3:.0f}", f"{seconds / spent['plain']:.2f}")
        Console(width=110).print(table)
        print(f"{statistics.mean(found.changed):.1%} of the learned tokens changed at {PROBABILITY}")


if __name__ == "__main__":
    main()
