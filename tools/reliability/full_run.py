"""A small run in which everything is on: the run that is killed, starved of disk, and left on for long."""

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import (
    AdaptiveLoRARank,
    EarlyStopCheckpoint,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
    ThroughputMonitor,
)
from lightning_vlm_callbacks.run_report import draw

from lightning_vlm import PredictionTable, TokenWeightSchedule, VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.optim import Constant

Method = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")

LORA = {
    "projector": "full",
    "vision.layers[0:2]": {"lora": {"r": 2, "dropout": 0.1}},
    "language": {"lora": {"r": 4, "dropout": 0.1}},
}
FULL = {"projector": "full", "vision.layers[0:2]": "full", "language": "full"}


class Case(NamedTuple):
    """Which run.

    Args:
        method: What trains: LoRA, LoRA on weights in NF4, or all weights.
        ranks: How many processes it has.
    """

    method: Method = "lora"
    ranks: int = 1

    def __str__(self) -> str:
        return f"{self.method}, {self.ranks} {'process' if self.ranks == 1 else 'processes'}"


class Length(NamedTuple):
    """How long a run is, and how often it does what.

    Args:
        steps: Optimizer steps, of two micro-batches each.
        samples: Of the training data.
        stages: The steps at which a stage begins.
        ranks_change: The first and the last step at which ranks of LoRA change, and the steps between two.
        save_every: Steps from one checkpoint to the next.
        validate_every: Micro-batches from one validation to the next.
        spoiled: The micro-batch whose pictures are NaN.
    """

    steps: int = 12
    samples: int = 14
    stages: tuple[int, ...] = (0, 3, 7)
    ranks_change: tuple[int, int, int] = (4, 8, 2)
    save_every: int = 2
    validate_every: int = 4
    spoiled: int = 11


SHORT = Length()


class SpoiledBatch(Callback):
    """Makes the pictures of one batch NaN, so that NonFiniteGuard has something to skip."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, _: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.number:
            batch.inputs["pixel_values"].fill_(float("nan"))


def make_module(method: Method, model: Path) -> VLMModule:
    """The module that is trained.

    Args:
        method: What trains.
        model: The folder of the model, such as one of `tests.support.tiny`.
    """
    torch.manual_seed(0)  # LoRA's A is random
    four_bits = Quantization("nf4", ["language"], compute_dtype="float32")
    module = VLMModule(
        str(model),
        adapt=FULL if method == "full" else LORA,
        quantization=four_bits if method == "qlora" else None,
        optimizer=partial(torch.optim.AdamW, lr=3e-3),
        schedule=Constant(),
        generation={"max_new_tokens": 3},
        clip=1.0,
    )
    module.configure_model()
    return module


def callbacks_of(case: Case, folder: Path, length: Length) -> list[Callback]:
    """Every callback that goes together with the others."""
    first, second, third = length.stages
    stages = [
        {"at": first, "train": {"projector": 1.0}},
        {"at": second, "train": {"projector": 1.0, "language": 0.5}},
        {"at": third, "train": {"projector": 0.5, "language": 1.0, "vision.layers[0:2]": 0.1}},
    ]
    callbacks: list[Callback] = [
        SpoiledBatch(length.spoiled),
        StagedUnfreezing(stages, unit="step", warmup_steps=1),
        NonFiniteGuard(dirpath=str(folder / "nonfinite")),
        GradientMonitor(),
        GradNorm(layer="language.layers[0].self_attn.q_proj" if case.method == "full" else None),
        TokenWeightSchedule(),
        ThroughputMonitor(print_summary=False),
        PredictionTable(samples=2, keep=4, dirpath=str(folder)),
        RunReport(dirpath=str(folder)),
    ]
    if case.method != "full":
        start, until, every = length.ranks_change
        callbacks.insert(2, AdaptiveLoRARank(start=start, every=every, until=until, **RANKS))
    callbacks.append(
        EarlyStopCheckpoint(
            "val/loss", every_n_steps=length.save_every, keep_periodic=2, dirpath=str(folder / "checkpoints")
        )
    )
    return callbacks


RANKS: dict[str, Any] = {"min_rank": 1, "max_rank": 8, "multiple_of": 1}


def fit(
    case: Case,
    module: VLMModule,
    folder: Path,
    length: Length = SHORT,
    more: Sequence[Callback] = (),
    batch_size: int = 2,
    **options: Any,
) -> Trainer:
    """Run to the end, from the last checkpoint in the folder if there is one.

    Args:
        case: Which run.
        module: From `make_module`; a process trains it once.
        folder: Where everything goes.
        length: How long.
        more: Further callbacks, which come first.
        batch_size: Of each process.
        options: Of the Trainer.
    """
    quiet()
    seed_everything(1, verbose=False)
    data = VLMDataModule(
        train=Drawn("train", size=length.samples * case.ranks, seed=1),
        val=Drawn("val", size=2 * case.ranks),
        batch_size=batch_size,
    )
    given: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": case.ranks,
        "strategy": "ddp" if case.ranks > 1 else "auto",
        "max_steps": length.steps,
        "max_epochs": -1,
        "accumulate_grad_batches": 2,
        "val_check_interval": length.validate_every,
        "default_root_dir": folder,
        "logger": CSVLogger(folder, name="log", version=0, flush_logs_every_n_steps=10),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    trainer = Trainer(callbacks=[*more, *callbacks_of(case, folder, length)], **{**given, **options})
    trainer.fit(module, data, ckpt_path="last", weights_only=True)
    return trainer


def quiet() -> None:
    """Print nothing but what the tool itself prints, and draw no PNGs, which take longer than the run."""
    draw.find_spec = lambda name: None  # type: ignore[assignment, misc]
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
