"""Two tasks whose losses are 100 times apart: who learns both?

    python benchmarks/two_tasks.py [--steps 800] [--seeds 5] [--lr 0.001 0.003 0.01]

Half of the samples are of task "large", half of "small"; each is the regression of a random network's output,
in "large" ten times as big, so that its squared error is a hundred times that of "small". A shared trunk, too
narrow for both, and a head for each task. It is `GradNorm` and the weightings of `VLMModule` that are tried,
in a plain LightningModule in which each sample belongs to one task; Adam, the same steps, data and first
weights for all, and for each its own best of the learning rates.

What counts is the worst task's L(t)/L(0) on inputs held out.
"""

import argparse
import logging
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_vlm  # noqa: F401

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks import GradNorm

from lightning_vlm.losses.tasks import Uncertainty, make_task_weights

NAMES, SIZES = ("large", "small"), torch.tensor([10.0, 1.0])
WIDE, TRUNK, OUT, BATCH, HELD_OUT = 32, 12, 4, 64, 2000
CONTENDERS: dict[str, dict[str, Any]] = {
    "equal": {},
    "inverse initial loss": {"weights": "inverse_initial_loss"},
    "uncertainty": {"weights": "uncertainty"},
    "GradNorm, alpha 0.12": {"alpha": 0.12},
    "GradNorm, alpha 1.5": {"alpha": 1.5},
}


class Two(LightningModule):
    """The trunk, the heads, and the weights of the two tasks."""

    def __init__(self, lr: float, seed: int, weights: str | None = None) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.teachers = [
            [torch.randn(shape, generator=chance) / shape[0] ** 0.5 for shape in ((WIDE, 16), (16, OUT))]
            for _ in NAMES
        ]
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(WIDE, TRUNK), nn.ReLU(), nn.Linear(TRUNK, TRUNK), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(TRUNK, OUT) for _ in NAMES)
        self.tasks = make_task_weights(weights, NAMES)
        self.lr = lr

    def losses(self, x: Tensor, of: Tensor) -> Tensor:
        """The loss of each sample, shape [samples]."""
        features = self.trunk(x)
        found = torch.stack([head(features) for head in self.heads])
        right = torch.stack([torch.tanh(2 * x @ one) @ other for one, other in self.teachers])
        error = (found - SIZES[:, None, None] * right).square().mean(2)
        return error.gather(0, of[None])[0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, of = batch
        self.tasks.rows = of
        losses = self.losses(x, of)
        self.tasks.add_rows(losses.detach(), of)
        each = torch.nn.functional.one_hot(of, len(NAMES)).float()
        self.step = losses.detach() @ each, each.sum(0)
        loss = (self.tasks.weights[of] * losses).mean()
        regularizer = self.tasks.regularizer(*self.step)
        return loss if regularizer is None else loss + regularizer / len(of)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        own = [*self.trunk.parameters(), *self.heads.parameters()]
        groups: list[dict[str, Any]] = [{"params": own}]
        if isinstance(self.tasks, Uncertainty):
            groups.append({"params": [self.tasks.log_variances], "lr": 0.01})
        return torch.optim.Adam(groups, lr=self.lr)

    @torch.no_grad()
    def measure(self, x: Tensor) -> Tensor:
        """The mean loss of each task, shape [tasks]."""
        return torch.stack([self.losses(x, torch.full((len(x),), task)).mean() for task in range(len(NAMES))])


class EndStep(Callback):
    """Lets weights change after each step."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        module.tasks.end_step(*module.step)


def run(steps: int, lr: float, seed: int, weights: str | None = None, alpha: float | None = None) -> Tensor:
    """Train from the beginning; L(t)/L(0) of each task on what is held out, shape [tasks]."""
    module = Two(lr, seed, weights)
    chance = torch.Generator().manual_seed(1000 + seed)
    held_out = torch.randn(HELD_OUT, WIDE, generator=chance)
    first = module.measure(held_out)
    gradnorm = [] if alpha is None else [GradNorm(alpha, layer="trunk[2]")]
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[EndStep(), *gradnorm],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = torch.randn(steps, BATCH, WIDE, generator=chance)
    of = torch.arange(BATCH).remainder(len(NAMES)).expand(steps, BATCH)
    trainer.fit(module, DataLoader(list(zip(x, of, strict=True)), batch_size=None))
    return module.measure(held_out) / first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ends = {
        (name, lr): torch.stack([run(given.steps, lr, seed, **how) for seed in range(given.seeds)])
        for name, how in CONTENDERS.items()
        for lr in given.lr
    }
    best = {name: min(given.lr, key=lambda lr: ends[name, lr].amax(1).mean().item()) for name in CONTENDERS}
    table = Table(title=f"Held-out L(t)/L(0) after {given.steps} steps, {given.seeds} seeds")
    for column in ("", "rate", *NAMES, "worst task", "× equal", "of a seed", "better in"):
        table.add_column(column, justify="right" if column else "left")
    equal = ends["equal", best["equal"]].amax(1)
    for name, lr in best.items():
        worst = ends[name, lr].amax(1)
        ratios = (worst / equal).tolist()
        table.add_row(
            name,
            f"{lr:g}",
            *(f"{one:.3f}" for one in ends[name, lr].mean(0).tolist()),
            f"{worst.mean().item():.3f}",
            f"{statistics.mean(ratios):.3f}",
            f"{min(ratios):.3f}..{max(ratios):.3f}",
            f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
