"""How long training waits for a checkpoint: written before the next step, or while training goes on.

    python -m tools.reliability.checkpoint_stalls

Two processes train a network under FSDP2 whose checkpoint has the size that is asked for, and save each
fourth step. Shown is by how much a step that saves takes longer than the median of those that don't, and what
the steps beside a checkpoint that is being written lose.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks import EarlyStopCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.support.pieces import fsdp2
from tests.support.ranks import call_on_ranks

EVERY, SAVES = 4, 6


class Wide(LightningModule):
    """Layers of a width, each a unit of FSDP2."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.depth = width, depth

    def configure_model(self) -> None:
        if hasattr(self, "net"):
            return
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        self.net = nn.Sequential(*[nn.Linear(self.width, self.width) for _ in range(self.depth)])
        for unit in (*self.net, self.net):
            fully_shard(unit, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Stopwatch(Callback):
    """The time from each step's beginning to the next one's."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.begun.append(time.perf_counter())


class Stall(NamedTuple):
    """Seconds.

    Args:
        step: The median of steps that save nothing, in a run that never saves.
        saving: The median of steps that save.
        others: The median of all the others.
    """

    step: float
    saving: float
    others: float


def train(folder: Path, width: int, depth: int, asynchronous: bool | None) -> list[float]:
    """Seconds of each step but the first, on one of the ranks; None saves nothing."""
    watch = Stopwatch()
    callbacks: list[Callback] = [watch]
    if asynchronous is not None:
        callbacks.append(
            EarlyStopCheckpoint(
                dirpath=str(folder),
                every_n_steps=EVERY,
                every_n_epochs=None,
                asynchronous=asynchronous,
            )
        )
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        max_steps=EVERY * SAVES + 3,
        logger=False,
        enable_checkpointing=asynchronous is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **fsdp2(),
    )
    data: DataLoader[Tensor] = DataLoader(list(torch.randn(1000, width)), batch_size=16)  # type: ignore[arg-type]
    trainer.fit(Wide(width, depth), data)
    return [after - before for before, after in zip(watch.begun, watch.begun[1:], strict=False)]


def measure(root: Path, width: int, depth: int, asynchronous: bool, step: float) -> Stall:
    """Of one way to write."""
    seconds = call_on_ranks(train, root / str(asynchronous), width, depth, asynchronous)[0]
    saving = [one for number, one in enumerate(seconds, 1) if number % EVERY == 0]
    others = [one for number, one in enumerate(seconds, 1) if number % EVERY and number > 1]
    return Stall(step, statistics.median(saving), statistics.median(others))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=192, help="Size of a checkpoint.")
    options = parser.parse_args(arguments)
    width = 1024
    depth = max(options.mib * 2**20 // (width * width * 4 * 3), 1)  # weights and AdamW's two moments
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        without = statistics.median(call_on_ranks(train, root / "none", width, depth, None)[0][1:])
        print(f"a step without checkpoints: {without:.2f} s")
        for asynchronous in (False, True):
            stall = measure(root, width, depth, asynchronous, without)
            name = "asynchronous" if asynchronous else "synchronous"
            print(
                f"{name}, {depth * 12} MiB: a step that saves takes {stall.saving:.2f} s "
                f"(+{stall.saving - stall.step:.2f}), the others {stall.others:.2f} s"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
