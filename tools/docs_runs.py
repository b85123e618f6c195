"""Runs of projects that aren't ours, for `tools.docs_pictures`: each is short, real and made once."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning_vlm_callbacks import (
    EarlyStopCheckpoint,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
)
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from tests.callbacks.digits import Classifier, Digits
from tests.support import task_modules

STEPS = 224


# A classifier of digits that has nothing to do with ours


def one_cycle(optimizer: Optimizer) -> OneCycleLR:
    """The schedule of the digits' runs."""
    return OneCycleLR(optimizer, 1e-2, total_steps=STEPS)


class Spoiled(Classifier):
    """One batch comes as NaN, as from a broken file."""

    def forward(self, pictures: Tensor) -> Tensor:
        if self.training and self.global_step == 100:
            pictures = pictures / 0
        return super().forward(pictures)


def fit(folder: Path, module: LightningModule, data: Any, epochs: int, *callbacks: Callback) -> Path:
    """Fit with a report; its page."""
    report = RunReport()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder / "version_0",
        logger=False,
        enable_checkpointing=any(isinstance(one, EarlyStopCheckpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        callbacks=[*callbacks, report],
    )
    loaders = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    trainer.fit(module, **loaders)
    assert report.page is not None
    return report.page


@cache
def digits(folder: Path) -> Path:
    """A run in three stages, in which one step is skipped."""
    seed_everything(0, verbose=False)
    stages = [
        {"at": 0.0, "train": {"head": 1.0}},
        {"at": 0.25, "train": {"head": 1.0, "blocks[50%:]": 0.3}},
        {"at": 0.6, "train": {"*": 0.3, "head": 1.0}},
    ]
    return fit(
        folder / "runs" / "digits",
        Spoiled(schedule=one_cycle),
        Digits(size=28 * 32, batch_size=32),
        STEPS // 28,
        StagedUnfreezing(stages, warmup_steps=15),
        NonFiniteGuard(),
        GradientMonitor(every_n_steps=2),
        EarlyStopCheckpoint("val/loss", patience=5),
    )


def spoiled(folder: Path) -> bytes:
    """The losses of one run with the guard, and of the same without; a PNG."""
    figure = Figure(figsize=(8.6, 3), layout="constrained", dpi=100)
    axis = figure.subplots()
    for name, callbacks, colour in (
        ("with NonFiniteGuard", [NonFiniteGuard()], "#1f77b4"),
        ("without", [], "#d62728"),
    ):
        seed_everything(0, verbose=False)
        data = Digits(size=28 * 32, batch_size=32)
        page = fit(
            folder / name.replace(" ", "-"), Spoiled(schedule=one_cycle), data, STEPS // 28, *callbacks
        )
        points = [
            (row["step"], float(row["metrics"]["train/loss"]))
            for row in records(page)
            if "train/loss" in row.get("metrics", {})
        ]
        axis.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.6)
    axis.axvline(100, color="#d62728", linewidth=1, linestyle=":")
    axis.text(
        102,
        2.3,
        "one batch is NaN:\nwithout the guard, so is\neach weight from here on",
        va="top",
        color="#d62728",
    )
    axis.set(xlabel="step", ylabel="train/loss", xlim=(0, STEPS))
    axis.legend(loc="upper right")
    axis.grid(alpha=0.3)
    return png(figure)


def records(page: Path) -> list[dict[str, Any]]:
    """The lines of the record beside a report."""
    return [json.loads(line) for line in page.with_name("report.jsonl").read_text("utf-8").splitlines()]


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@cache
def balanced(folder: Path) -> Path:
    """Three tasks whose losses are of very different sizes."""
    seed_everything(0, verbose=False)
    data = DataLoader(task_modules.data(480), 24, shuffle=True)
    module = task_modules.Sorts(adam=True, lr=3e-3)
    return fit(folder / "balanced", module, data, 10, GradNorm(alpha=0.5))
