"""Whether a run that goes on with another number of processes is the uninterrupted run.

    python -m tools.reliability.elastic                # every case
    python -m tools.reliability.elastic --case packed  # one

Each case trains a tiny Llava for two epochs on one process, and again on 1, 2, 4 and 1 processes: each part
is killed with SIGKILL in the middle of an optimizer step, and the next goes on from its last checkpoint with
the same number of samples in a step. The samples of each micro-batch must be those of the uninterrupted run;
weights may differ by the rounding of other sums.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.multiprocessing import ProcessExitedException

from lightning_vlm import VLMModule
from tests.support import tiny
from tests.support.ranks import call_on_ranks
from tests.support.sharded import whole_weights
from tools.reliability.elastic_cases import CASES, LORA, Case

MOST = 1e-4
"""By so much the final weights may differ, as a share of how far training has moved them."""


class Log(Callback):
    """Writes down which samples each micro-batch has, and kills the process in the middle of a step."""

    def __init__(self, file: Path, kill: int | None) -> None:
        self.file, self.kill = file, kill

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        number = batch_idx * trainer.world_size + trainer.global_rank
        with self.file.open("a") as file:
            file.write(json.dumps([trainer.current_epoch, number, batch.sources]) + "\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        window = trainer.accumulate_grad_batches
        if trainer.global_step == self.kill and (batch_idx + 1) % window == window // 2:
            os.kill(os.getpid(), signal.SIGKILL)


class Part(NamedTuple):
    """A part of a run: on how many processes, and in the middle of which optimizer step it is killed."""

    ranks: int
    kill: int | None


def train(case: Case, part: Part, model: Path, folder: Path, resume: bool) -> dict[str, torch.Tensor]:
    """Train on one rank of a part, and return what trains."""
    _quiet(folder / "output.txt")
    seed_everything(1, verbose=False)
    keep, last = case.saver(folder / "checkpoints")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[
            *case.callbacks(part.ranks),
            keep,
            Log(folder / f"{os.environ.get('RANK', 0)}.jsonl", part.kill),
        ],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **case.options(part.ranks),
    )
    module = make_module(case, model)
    trainer.fit(
        module,
        case.make_data(folder.parent / "shards"),
        ckpt_path=last if resume else None,
        weights_only=True,
    )
    return whole_weights(module)


def make_module(case: Case, model: Path) -> VLMModule:
    """The module of a run, without its model."""
    template = {} if tiny.FAMILIES["llava"].template else {"chat_template": "plain"}
    return VLMModule(str(model), **{"adapt": LORA, "dtype": "float32", **template, **case.module})


def _quiet(file: Path) -> None:
    """Let this process print into a file; a failure's traceback comes with its exception."""
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)


def go(case: Case, parts: Sequence[Part], model: Path, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Run parts one after the other, each from the last checkpoint of the one before.

    Returns:
        What each process of the last part ends with.
    """
    folder.mkdir()
    if case.stream:
        case.write_shards(folder.parent / "shards")
    for number, part in enumerate(parts):
        arguments = case, part, model, folder, number > 0
        if part.kill is None:
            return call_on_ranks(train, *arguments, ranks=part.ranks)
        try:
            call_on_ranks(train, *arguments, ranks=part.ranks)
        except ProcessExitedException:
            continue
        raise AssertionError(f"part {number + 1} ended before it was killed")
    raise AssertionError("the last part has to end by itself")


def order(folder: Path) -> dict[tuple[int, int], list[str]]:
    """The samples of each micro-batch of a run: by epoch and number. What came again must be the same."""
    found: dict[tuple[int, int], list[str]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            epoch, number, sources = json.loads(line)
            if found.setdefault((epoch, number), sources) != sources:
                raise AssertionError(f"epoch {epoch}, micro-batch {number}: {sources}")
    return {place: sources for place, sources in found.items() if sources}


class Result(NamedTuple):
    """What a case showed.

    Args:
        micro_batches: How many had a sample.
        same_order: Whether each had the samples of the uninterrupted run.
        difference: The largest difference of a weight, as a share of the largest change by training.
        seconds: Taken.
    """

    micro_batches: int
    same_order: bool
    difference: float
    seconds: float


def compare(case: Case, ranks: Sequence[int], model: Path, folder: Path) -> Result:
    """Compare a run on changing numbers of processes with the uninterrupted one on one process."""
    begun = time.monotonic()
    (expected,) = go(case, [Part(1, None)], model, folder / "whole")
    parts = [Part(one, kill) for one, kill in zip(ranks, [*case.kills[: len(ranks) - 1], None], strict=True)]
    resumed = go(case, parts, model, folder / "parts")
    whole = order(folder / "whole")
    start = _start(case, model)
    moved = max(
        float((expected[name] - start[name]).abs().max())
        for name in expected
        if expected[name].shape == start[name].shape  # ranks of LoRA may have changed
    )
    differences = [float((one[name] - expected[name]).abs().max()) for one in resumed for name in expected]
    same = order(folder / "parts") == whole
    return Result(len(whole), same, max(differences) / moved, time.monotonic() - begun)


def _start(case: Case, model: Path) -> dict[str, torch.Tensor]:
    seed_everything(1, verbose=False)
    module = make_module(case, model)
    module.configure_model()
    return whole_weights(module)


def main(arguments: list[str]) -> int:
    """Print a row for each case; 1 if one of them isn't as the uninterrupted run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--out", type=Path, help="a new folder for the runs, which is kept")
    given = parser.parse_args(arguments)
    chosen = given.case or list(CASES)
    failed = 0
    print("| case | processes | micro-batches | same order | weights differ by, of their change | seconds |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary, "elastic")
        folder.mkdir(parents=True)
        model = tiny.build("llava", folder / "model")
        for name in chosen:
            into = folder / name
            into.mkdir()
            found = compare(CASES[name], (1, 2, 4, 1), model, into)
            failed += not (found.same_order and found.difference <= MOST)
            same = "yes" if found.same_order else "NO"
            row = f"| {name} | 1 → 2 → 4 → 1 | {found.micro_batches} | {same} | {found.difference:.1e} |"
            print(f"{row} {found.seconds:.0f} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
