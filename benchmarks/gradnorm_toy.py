"""Is GradNorm worth it where its paper says so? Its toy: tasks alike but for the size of their targets.

    python benchmarks/gradnorm_toy.py [--steps 1500] [--seeds 3] [--lr 0.001 0.003 0.01]

Chen et al. (ICML 2018), section 4: task i is the regression of f_i(x) = σ_i tanh((B + ε_i) x), x of 250
dimensions, f of 100. B is what the tasks have in common, its elements N(0, 10); those of ε_i, a task's own,
are N(0, 3.5); we take that for standard deviations, as public copies do. A trunk of four ReLU layers, 100
wide, and a linear head for each task learn it with the squared error. What the paper leaves open, or we don't
know, is ours: 10 tasks with σ_i from 1 to 100, evenly in logarithms; x standard normal, new in each step
(batch 100); Adam.

What counts is the mean over tasks of L_i(t)/L_i(0) on 1,000 inputs held out: in it each task counts alike,
however large its loss. Each contender has the same steps, data and first weights, and its own best of the
learning rates:
- "equal": the sum of the losses.
- "GradNorm": alpha 0.12, as in the paper, with either solver; the layer is the trunk's last.
- "uncertainty": (exp(-s_i) L_i + s_i) / 2, s_i learned (Kendall et al., 2018) at ten times the rate.
- "1/σ²": what one would choose who knew each σ_i.
"""

import argparse
import logging
import statistics
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_vlm  # noqa: F401

# isort: split
from lightning.pytorch import LightningModule, Trainer
from lightning_vlm_callbacks import GradNorm, TaskWeights

CONTENDERS = ("equal", "GradNorm", "GradNorm, paper's solver", "uncertainty", "1/σ²")
ALPHA, HELD_OUT = 0.12, 1000


class Problem:
    """The tasks, the same for the same seed."""

    def __init__(self, tasks: int = 10, wide: int = 250, out: int = 100, seed: int = 0) -> None:
        self.chance = torch.Generator().manual_seed(seed)
        self.sigmas = torch.logspace(0, 2, tasks)
        common, own = self.normal(out, wide), self.normal(tasks, out, wide)
        self.maps = 10 * common + 3.5 * own

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.chance)

    def inputs(self, count: int) -> Tensor:
        """Tensor of shape [count, wide]."""
        return self.normal(count, self.maps.shape[2])

    def targets(self, x: Tensor) -> Tensor:
        """Tensor of shape [tasks, inputs, out]."""
        return self.sigmas[:, None, None] * torch.tanh(x @ self.maps.mT)


class Toy(LightningModule):
    """A trunk that all tasks share, and a head for each; how they are weighted is the contender's affair."""

    def __init__(self, problem: Problem, contender: str, lr: float, seed: int, hidden: int = 100) -> None:
        super().__init__()
        torch.manual_seed(seed)
        tasks, out, wide = problem.maps.shape
        layers = [nn.Linear(wide if first else hidden, hidden) for first in (True, False, False, False)]
        self.trunk = nn.Sequential(*(module for layer in layers for module in (layer, nn.ReLU())))
        names = [f"task{number}" for number in range(tasks)]
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, out) for name in names})
        known = problem.sigmas**-2 if contender == "1/σ²" else torch.ones(tasks)
        self.tasks = TaskWeights(names, (known * tasks / known.sum()).tolist())
        self.s = nn.Parameter(torch.zeros(tasks)) if contender == "uncertainty" else None
        self.problem, self.lr = problem, lr
        self.held_out = problem.inputs(HELD_OUT)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        targets = self.problem.targets(x)
        return {
            name: (head(features) - target).square().mean()
            for (name, head), target in zip(self.heads.items(), targets, strict=True)
        }

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        if self.s is None:
            return self.tasks.total(losses)
        return (torch.exp(-self.s) * torch.stack(list(losses.values())) + self.s).sum() / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [*self.trunk.parameters(), *self.heads.parameters()]}]
        if self.s is not None:
            groups.append({"params": [self.s], "lr": 10 * self.lr})
        return torch.optim.Adam(groups, lr=self.lr)

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Losses on what is held out, shape [tasks]."""
        return torch.stack(list(self.losses(self.held_out).values()))


class Run(NamedTuple):
    """What a run gave.

    Args:
        shares: L_i(t)/L_i(0) at the end, shape [tasks].
        weights: The tasks' weights at the end, shape [tasks].
        seconds: Of the processor, for a step in the mean; other programs hardly change it.
    """

    shares: Tensor
    weights: Tensor
    seconds: float


def run(contender: str, problem: Problem, steps: int, lr: float, seed: int, batch: int = 100) -> Run:
    """Train from the beginning."""
    module = Toy(problem, contender, lr, seed)
    first = module.measure()
    solver = "paper" if "paper" in contender else "closed_form"
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[GradNorm(ALPHA, solver=solver)] if "GradNorm" in contender else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(problem.inputs(steps * batch).view(steps, batch, -1), batch_size=None)
    start = time.process_time()
    trainer.fit(module, batches)
    seconds = (time.process_time() - start) / steps
    return Run(module.measure() / first, module.tasks.weights.clone(), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seeds = range(given.seeds)
    found = {
        (name, lr): [run(name, Problem(seed=seed), given.steps, lr, seed) for seed in seeds]
        for lr in given.lr
        for name in CONTENDERS
    }
    shares = {key: [run.shares.mean().item() for run in runs] for key, runs in found.items()}
    best = {name: min(given.lr, key=lambda lr: statistics.mean(shares[name, lr])) for name in CONTENDERS}
    title = f"Held-out L(t)/L(0) after {given.steps} steps: means over {given.seeds} seeds"
    table = Table(title=title)
    for column in ("", "rate", "mean of tasks", "× equal", "of a seed", "σ = 1", "σ = 100", "time × equal"):
        table.add_column(column, justify="right" if column else "left")
    equal = "equal", best["equal"]
    for name, lr in best.items():
        runs = found[name, lr]
        ratios = [share / other for share, other in zip(shares[name, lr], shares[equal], strict=True)]
        times = statistics.median(
            mine.seconds / other.seconds for mine, other in zip(runs, found[equal], strict=True)
        )
        ends = torch.stack([run.shares for run in runs]).mean(0)
        table.add_row(
            name,
            f"{lr:g}",
            f"{statistics.mean(shares[name, lr]):.3f}",
            f"{statistics.mean(ratios):.3f}",
            f"{min(ratios):.3f}..{max(ratios):.3f}",
            f"{ends[0]:.3f}",
            f"{ends[-1]:.3f}",
            f"{times:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
