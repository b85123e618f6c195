"""What options of DDP cost or save in a training step, against plain DDP.

    python benchmarks/ddp.py [--rounds 3] [--steps 12]

Two processes on the CPU, over gloo: VLMModule on `drawn-vlm` with drawn pictures, batch 4 each, every
parameter trained, AdamW. The contenders take turns fit by fit, and each fit leaves out its first steps.
Printed are the processor's time for the median step of a process, which other tenants of the machine don't
change, and its ratio to plain DDP. What options save in waiting for a network isn't in it.
- "find_unused_parameters": torch walks through the graph of each step; chosen with `no_gradient_needed`.
- "walk": our own walk through the graph, which plain DDP has too (`GradientCoverage.reach_all`): its time.

A second table has the walk through models of real depth, 32 layers with LoRA on all of their linear layers.
The walk takes as long for wide layers as for narrow ones, so it matters least where a step takes longest.
"""

import argparse
import statistics
import time
import warnings
from collections import defaultdict
from typing import Any

import torch

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.training.gradient_coverage import GradientCoverage, unreached

# isort: split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support.ranks import call_on_ranks

BATCH, WARM = 4, 3
"""Samples in a batch of one process; steps of a fit that aren't counted."""
PLAN = {"vision.layers": "full", "projector": "full", "language": "full"}
CONTENDERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "both": {"gradient_as_bucket_view": True, "static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
}


class Clock(Callback):
    """The processor's time for each step, and for our walk through its graph."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.walks: list[float] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        coverage: GradientCoverage = module.callbacks.coverage
        reach_all = coverage.reach_all

        def timed(root: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
            began = time.process_time()
            found = reach_all(root, loss)
            self.walks.append(time.process_time() - began)
            return found

        coverage.reach_all = timed  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.process_time() - self.began)


def fit(options: dict[str, Any], steps: int) -> Clock:
    torch.manual_seed(0)
    clock = Clock()
    Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(**options),
        max_steps=WARM + steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[clock],
    ).fit(
        VLMModule("drawn-vlm", adapt=PLAN),
        VLMDataModule(train=Drawn("train", size=128, tasks=["vqa"]), batch_size=BATCH),
    )
    return clock


def on_rank(rounds: int, steps: int) -> dict[str, torch.Tensor]:
    warnings.filterwarnings("ignore")
    found = defaultdict(list)
    for _ in range(rounds):
        for name, options in CONTENDERS.items():
            clock = fit(options, steps)
            found[name] += clock.steps[WARM:]
            if name == "plain":
                found["walk"] += clock.walks[WARM:]
    return {name: torch.tensor(times) for name, times in found.items()}


def deep(width: int, steps: int = 6) -> tuple[float, float]:
    """The processor's seconds of a step of 32 layers, on 128 tokens, and of the walk through its graph."""
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    model = get_peft_model(Qwen2ForCausalLM(config), LoraConfig(r=4, target_modules="all-linear"))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, 256, (2, 64))
    times, walks = [], []
    for _ in range(WARM + steps):
        began = time.process_time()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        walk_began = time.process_time()
        assert not unreached(loss, trained)
        walks.append(time.process_time() - walk_began)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    return statistics.median(times[WARM:]), statistics.median(walks[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="fits of each contender")
    parser.add_argument("--steps", type=int, default=12, help="of a fit that are counted")
    given = parser.parse_args()
    first = call_on_ranks(on_rank, given.rounds, given.steps)[0]
    table = Table(title=f"drawn-vlm, 2 processes × batch {BATCH}, {given.rounds * given.steps} steps of each")
    for column in ("", "step, CPU ms", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    medians = {name: statistics.median(times.tolist()) for name, times in first.items()}
    for name, median in medians.items():
        table.add_row(name, f"{median * 1e3:.1f}", f"{median / medians['plain']:.3f}")
    Console(width=100).print(table)
    table = Table("width of 32 layers", "step, CPU ms", "walk, CPU ms", "share")
    for width in (64, 512):
        step, walk = deep(width)
        table.add_row(str(width), f"{step * 1e3:.0f}", f"{walk * 1e3:.1f}", f"{walk / step:.2%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
