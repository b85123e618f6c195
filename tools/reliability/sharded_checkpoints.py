"""Kills sharded runs while they write checkpoints, resumes them, and compares the end to the last bit.

    python -m tools.reliability.sharded_checkpoints --kills 40

Two processes train a small model under FSDP2 and save each step. One of them, drawn with `--seed`, is killed
with SIGKILL a few milliseconds after a file operation of a checkpoint, drawn too: a folder or a file that is
made, renamed, linked or deleted. The other one is killed then too. The run is resumed by
`ckpt_path="last"`, and must end with the weights and the optimizer's state of the uninterrupted run. Every
second run writes while training goes on.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.sharded_checkpoints import check_folder
from torch import Tensor
from torch.multiprocessing import start_processes

from tests.support.pieces import Pieces, fsdp2, whole, whole_weights
from tests.support.project import Samples
from tests.support.ranks import call_on_ranks, free_port, rank_environment

RANKS = 2
STEPS = 6
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir")
"""Python's own names of the file operations that it can be asked to report."""
LATEST_DELAY = 0.004
"""Seconds after the operation, at most."""


class Kill(NamedTuple):
    """When a process dies: so many seconds after its n-th operation on files of checkpoints."""

    rank: int
    operation: int
    delay: float
    asynchronous: bool


class OwnChance(Callback):
    """Dropout of its own on each rank, which a resumed run must continue."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        torch.manual_seed(trainer.global_rank)


def train(folder: Path, asynchronous: bool) -> dict[str, Tensor]:
    """A run on one of the ranks, resumed if it has begun. Weights and the optimizer's state, whole."""
    seed_everything(1, verbose=False)
    keep = EarlyStopCheckpoint(
        "val/loss", dirpath=str(folder), every_n_steps=1, keep_periodic=2, asynchronous=asynchronous
    )
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[OwnChance(), keep],
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=folder,
        **fsdp2(RANKS),
    )
    module = Pieces(dropout=0.2)
    trainer.fit(module, Samples(size=24, batch_size=4), ckpt_path="last", weights_only=True)
    found = whole_weights(module)
    for name, parameter in module.named_parameters():
        for key, value in trainer.optimizers[0].state.get(parameter, {}).items():
            found[f"{name}.{key}"] = whole(value)
    return found


def count_operations(folder: Path, asynchronous: bool) -> dict[str, Any]:
    """The uninterrupted run on one of the ranks, and how many operations it makes on files of checkpoints."""
    count = Counter[str]()
    sys.addaudithook(lambda event, given: count.update([event] if _is_of_checkpoint(event, given) else []))
    found = train(folder, asynchronous)
    return {"end": found, "operations": count.total()}


def _is_of_checkpoint(event: str, given: tuple[Any, ...]) -> bool:
    return event in OPERATIONS and ".ckpt" in str(given[0])


def killed(rank: int, port: int, folder: Path, kill: Kill) -> None:
    """A run on one of the ranks, in which one of them is killed."""
    rank_environment(rank, RANKS, port)
    if rank == kill.rank:
        left = [kill.operation]

        def watch(event: str, given: tuple[Any, ...]) -> None:
            if _is_of_checkpoint(event, given):
                left[0] -= 1
                if left[0] == 0:
                    (folder.parent / "where").write_text(f"{event} {_kind(str(given[0]))}")
                    threading.Timer(kill.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        sys.addaudithook(watch)
    train(folder, kill.asynchronous)


def _kind(path: str) -> str:
    name = Path(path).name
    return "a rank's piece" if name.endswith(".distcp") else ".metadata" if ".metadata" in name else name


def run_killed(folder: Path, kill: Kill) -> bool:
    """Start the ranks, and kill them all when one is killed. Whether one was."""
    context = start_processes(killed, (free_port(), folder, kill), RANKS, join=False, start_method="fork")
    while all(process.is_alive() for process in context.processes):
        time.sleep(0.01)
    was_killed = False
    for process in context.processes:
        was_killed |= process.exitcode == -signal.SIGKILL
    for process in context.processes:
        if was_killed:
            process.kill()
        process.join()
    return was_killed


def main(arguments: list[str] | None = None) -> int:
    """Run the command. How many kills ended otherwise than promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    failures, kills, places, begun = 0, 0, Counter[str](), 0
    with tempfile.TemporaryDirectory() as root:
        wholes: dict[bool, list[dict[str, Any]]] = {}
        for number in range(options.kills):
            way = number % 2 == 1
            if way not in wholes:
                wholes[way] = call_on_ranks(count_operations, Path(root, f"whole-{way}"), way)
            rank = chance.randrange(RANKS)
            last = wholes[way][rank]["operations"]
            kill = Kill(rank, chance.randint(1, last), chance.uniform(0, LATEST_DELAY), way)
            folder = Path(root, "run", "checkpoints")
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir()
            if not run_killed(folder, kill):
                continue  # it ended within the last milliseconds
            kills += 1
            places[(folder.parent / "where").read_text()] += 1
            latest = folder / "latest.ckpt"
            begun += latest.exists()
            try:
                if latest.exists():
                    check_folder(latest.resolve())
                ends = call_on_ranks(train, folder, way)
                wrong = [
                    name
                    for end, right in zip(ends, wholes[way], strict=True)
                    for name, value in right["end"].items()
                    if not torch.equal(end[name], value)
                ]
                wrong += [path.name for path in folder.glob(".unfinished*")]
            except Exception as error:
                wrong = [f"{type(error).__name__}: {str(error).strip()[-600:]}"]
            if wrong:
                failures += 1
                print(f"{kill}: {wrong[:3]}")
    print("killed after:", ", ".join(f"{place} ×{count}" for place, count in places.most_common()))
    print(
        f"{kills} kills while a sharded checkpoint was written, {begun} of them with a complete one before: "
        f"{kills - failures} resumed and ended bit for bit as if they had never stopped"
    )
    return failures


if __name__ == "__main__":
    sys.exit(main())
