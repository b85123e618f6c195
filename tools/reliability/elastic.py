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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.multiprocessing import ProcessExitedException

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from tests.support import tiny
from tests.support.ranks import call_on_ranks

LORA = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}
TASKS = ["vqa", "caption", "ocr"]
MOST = 1e-4
"""By so much the final weights may differ, as a share of how far training has moved them."""


@dataclass(frozen=True)
class Case:
    """One way of batching.

    Args:
        data: Options of the data module.
        samples: How many it has; no multiple of a step, so that the last step of an epoch is shorter.
        step: Micro-batches of an optimizer step, those of all processes together.
        kills: In which optimizer step each part but the last is killed.
        workers: Of each process.
    """

    data: dict[str, Any] = field(default_factory=lambda: {"batch_size": 1})
    samples: int = 20
    step: int = 8
    kills: tuple[int, ...] = (1, 3, 4)
    workers: int = 0


PACKED = {"batching": "packed", "max_tokens": 300}
CASES = {
    "padded": Case(),
    "padded, 2 workers": Case(workers=2),
    "packed": Case(PACKED, samples=100),
    "packed, 2 workers": Case(PACKED, samples=100, workers=2),
    "tokens": Case({"batching": "tokens", "max_tokens": 300}, samples=100),
    "length": Case({"batching": "length", "batch_size": 1}),
    "by task": Case({"batch_size": 1, "sampling": "uniform"}),
    "by task, packed": Case({**PACKED, "sampling": "uniform"}, samples=100),
}


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
    keep = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=part.ranks,
        strategy="ddp" if part.ranks > 1 else "auto",
        accumulate_grad_batches=case.step // part.ranks,
        max_epochs=2,
        callbacks=[keep, Log(folder / f"{os.environ.get('RANK', 0)}.jsonl", part.kill)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    module = VLMModule(str(model), adapt=LORA, dtype="float32", **_template())
    source = Drawn("train", size=case.samples, tasks=TASKS)
    data = VLMDataModule(train=source, num_workers=case.workers, **case.data)
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}


def _quiet(file: Path) -> None:
    """Let this process print into a file; a failure's traceback comes with its exception."""
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)


def _template() -> dict[str, Any]:
    return {} if tiny.FAMILIES["llava"].template else {"chat_template": "plain"}


def go(case: Case, parts: Sequence[Part], model: Path, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Run parts one after the other, each from the last checkpoint of the one before.

    Returns:
        What each process of the last part ends with.
    """
    folder.mkdir()
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
    start = {name: one for name, one in _start(model).items() if name in expected}
    moved = max(float((expected[name] - start[name]).abs().max()) for name in expected)
    differences = [float((one[name] - expected[name]).abs().max()) for one in resumed for name in expected]
    same = order(folder / "parts") == whole
    return Result(len(whole), same, max(differences) / moved, time.monotonic() - begun)


def _start(model: Path) -> dict[str, torch.Tensor]:
    seed_everything(1, verbose=False)
    module = VLMModule(str(model), adapt=LORA, dtype="float32", **_template())
    module.configure_model()
    return {name: one.detach() for name, one in module.named_parameters()}


def main(arguments: list[str]) -> int:
    """Print a row for each case; 1 if one of them isn't as the uninterrupted run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", choices=CASES, action="append")
    chosen = parser.parse_args(arguments).case or list(CASES)
    failed = 0
    print("| case | processes | micro-batches | same order | weights differ by, of their change | seconds |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.build("llava", Path(folder, "model"))
        for name in chosen:
            into = Path(folder, name)
            into.mkdir()
            found = compare(CASES[name], (1, 2, 4, 1), model, into)
            failed += not (found.same_order and found.difference <= MOST)
            same = "yes" if found.same_order else "NO"
            row = f"| {name} | 1 → 2 → 4 → 1 | {found.micro_batches} | {same} | {found.difference:.1e} |"
            print(f"{row} {found.seconds:.0f} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
