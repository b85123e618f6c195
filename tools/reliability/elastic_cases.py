"""The runs that `tools.reliability.elastic` takes to other numbers of processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_vlm_callbacks import (
    AdaptiveLoRARank,
    EarlyStopCheckpoint,
    GradNorm,
    NonFiniteGuard,
    StagedUnfreezing,
)

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from tests.support.shards import write_shard

LORA = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}
FULL = {"projector": "full", "language": "full"}
TASKS = ["vqa", "caption", "ocr"]


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Args:
        data: Options of the data module.
        samples: How many it has; no multiple of a step, so that the last step of an epoch is shorter.
        step: Micro-batches of an optimizer step, those of all processes together.
        kills: In which optimizer step each part but the last is killed.
        workers: Of each process.
        stream: Whether samples are read from shards, of which each has a task.
        module: Options of the module.
        callbacks: Of the number of processes; those that the run has beside the one that saves.
        trainer: Of the number of processes; more options of the Trainer.
        sharded: How several processes save a model that is cut into pieces (FSDP2): as folders, or as one
            file. With None each has the whole model (DDP).
        saves: Whose callback saves: Lightning's, or EarlyStopCheckpoint.
    """

    data: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 1})
    samples: int = 20
    step: int = 8
    kills: tuple[int, ...] = (1, 3, 4)
    workers: int = 0
    stream: bool = False
    module: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[int], list[Callback]] = lambda ranks: []
    trainer: Callable[[int], dict[str, Any]] = lambda ranks: {}
    sharded: Literal["folders", "file"] | None = None
    saves: Literal["ModelCheckpoint", "EarlyStopCheckpoint"] = "EarlyStopCheckpoint"

    def make_data(self, folder: Path) -> VLMDataModule:
        """The data of a run, whose shards lie in a folder if it has any."""
        if not self.stream:
            source = Drawn("train", size=self.samples, tasks=TASKS)
            return VLMDataModule(train=source, num_workers=self.workers, **self.data)
        streaming = {"shuffle_window": 8, "tasks": {task: f"*{task}.tar" for task in TASKS}}
        data = {**self.data, "streaming": streaming}
        return VLMDataModule(train=f"{folder}/*.tar", num_workers=self.workers, **data)

    def write_shards(self, folder: Path) -> None:
        """Write the shards of a stream, each with fewer samples than the one before."""
        for number, task in enumerate(TASKS):
            begin = number * self.samples
            write_shard(folder / f"{task}.tar", range(begin, begin + self.samples // (number + 1)))

    def options(self, ranks: int) -> dict[str, Any]:
        """Options of the Trainer that depend on the number of processes."""
        strategy: Any = "ddp" if ranks > 1 else "auto"
        if self.sharded and ranks > 1:
            strategy = ModelParallelStrategy(
                data_parallel_size=ranks,
                tensor_parallel_size=1,
                process_group_backend="gloo",
                save_distributed_checkpoint=self.sharded == "folders",
            )
        options = {"devices": ranks, "strategy": strategy, "accumulate_grad_batches": self.step // ranks}
        return {**options, **self.trainer(ranks)}

    def saver(self, folder: Path) -> tuple[Callback, Path]:
        """The callback that saves after each optimizer step, and where the last checkpoint is."""
        if self.saves == "EarlyStopCheckpoint":
            keep = EarlyStopCheckpoint(dirpath=str(folder), every_n_steps=1, every_n_epochs=None)
            return keep, folder / "latest.ckpt"
        checkpoint = ModelCheckpoint(
            folder, filename="last", every_n_train_steps=1, enable_version_counter=False
        )
        return checkpoint, folder / "last.ckpt"


def _stages(ranks: int) -> list[Callback]:
    stages = [
        {"at": 0, "train": {"projector": 1.0}},
        {"at": 2, "train": {"projector": 1.0, "language": 0.5}},
        {"at": 4, "train": {"language": 1.0}},
    ]
    return [StagedUnfreezing(stages, unit="step", warmup_steps=2)]


def _rank_changes(ranks: int) -> list[Callback]:
    bounds: dict[str, Any] = {"min_rank": 1, "max_rank": 8, "multiple_of": 1}
    return [AdaptiveLoRARank(start=2, every=2, until=5, **bounds)]


def _windows(ranks: int) -> list[Callback]:
    return [GradientAccumulationScheduler({0: 8 // ranks, 1: 4 // ranks})]


PACKED = {"batching": "packed", "max_tokens": 300}
BY_LOSS = {"score": "hard", "every_n_samples": 16, "temperature": 0.3}
_lightning = partial(Case, saves="ModelCheckpoint")
_nf4 = {"quantization": Quantization("nf4", ["language"], compute_dtype="float32")}
_sgd = {"adapt": FULL, "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}

CASES: dict[str, Case] = {
    "padded": _lightning(),
    "padded, 2 workers": _lightning(workers=2),
    "packed": _lightning(PACKED, samples=100),
    "packed, 2 workers": _lightning(PACKED, samples=100, workers=2),
    "tokens": _lightning({"batching": "tokens", "max_tokens": 300}, samples=100),
    "length": _lightning({"batching": "length", "batch_size": 1}),
    "by task": _lightning({"batch_size": 1, "sampling": "uniform"}),
    "by task, packed": _lightning({**PACKED, "sampling": "uniform"}, samples=100),
    "by loss": Case({"batch_size": 1, "sampling": BY_LOSS}, samples=44, kills=(2, 6, 9)),
    "stream": Case(stream=True, kills=(1, 3, 6)),
    "stream by task, 2 workers": Case(
        {"batch_size": 1, "sampling": "uniform"}, samples=24, workers=2, stream=True
    ),
    "stream by loss": Case({"batch_size": 1, "sampling": BY_LOSS}, samples=24, kills=(2, 6, 9), stream=True),
    "QLoRA": Case(module=_nf4),
    "full": Case(module=_sgd),
    "windows by epoch": Case(
        callbacks=_windows, trainer=lambda ranks: {"accumulate_grad_batches": 1}, kills=(1, 4, 6)
    ),
    "StagedUnfreezing": Case(callbacks=_stages),
    "AdaptiveLoRARank": Case(callbacks=_rank_changes),
    "GradNorm": Case(callbacks=lambda ranks: [GradNorm(), NonFiniteGuard()]),
    "FSDP2": Case(sharded="folders"),
    "FSDP2, one file": Case(sharded="file"),
    "FSDP2, full, StagedUnfreezing": Case(module=_sgd, callbacks=_stages, sharded="folders"),
    "FSDP2, QLoRA": Case(module=_nf4, sharded="folders"),
    "FSDP2, by loss": Case(
        {"batch_size": 1, "sampling": BY_LOSS}, samples=44, kills=(2, 6, 9), sharded="folders"
    ),
    "FSDP2, packed": Case(PACKED, samples=100, sharded="folders"),
}
