"""Does a loss that knows geometry help to find things? Cross-entropy against each box loss.

    python benchmarks/grounding.py [--losses none soft wasserstein iou] [--seeds 0 1 2] [--steps 400]

The shipped model learns drawn grounding data by the rates of `configs/examples/grounding.yaml`; only
the box loss and the order of the samples, by seed, differ. Scored are greedy answers about 500 pictures of
the split `test`, with boxes in pixels of the original. Each run is printed as it ends, and the table last.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lightning_vlm  # noqa: F401

# isort: split
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Cosine

SCORES = ("acc@0.5", "acc@0.75", "miou", "parse_failures", "duplicates")
LOSSES: dict[str, Any] = {
    "none": None,
    "soft": {"kind": "soft", "sigma": 1.0},
    "wasserstein": {"kind": "wasserstein"},
    "iou": {"kind": "iou"},
}


def run(loss: str, seed: int, steps: int, samples: int) -> dict[str, float]:
    """Train from the shipped model, and score it; with 0 steps it is scored as it is."""
    seed_everything(seed, verbose=False)
    module = VLMModule(
        "drawn-vlm",
        adapt={"vision": "full", "projector": "full", "language": "full"},
        no_gradient_needed=["model.model.vision_tower.post_layernorm"],
        optimizer=partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98)),
        learning_rates={"vision": 4e-4},
        schedule=Cosine(warmup=0.05, floor=0.02),
        box_loss=LOSSES[loss],
        new_tokens=["<loc_0..63>"],
        generation={"max_new_tokens": 20},
        scores={"grounding": list(SCORES)},
    )
    data = VLMDataModule(
        train=Drawn(size=40_000, seed=11, max_things=1, tasks=["grounding"]),
        test=Drawn("test", size=samples, max_things=1, tasks=["grounding"]),
        batch_size=32,
        eval_batch_size=125,
        seed=seed,
        boxes="loc",
    )
    folder = tempfile.TemporaryDirectory()  # several of these may run at once
    trainer = Trainer(
        max_steps=steps,
        default_root_dir=folder.name,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    if steps:
        trainer.fit(module, data)
    seconds = time.process_time() - start
    (scores,) = trainer.test(module, data, verbose=False)
    found = {name: _score(scores, name) for name in SCORES}
    folder.cleanup()
    return {**found, "core seconds": seconds}


def _score(scores: Any, name: str) -> float:
    return next((value for key, value in scores.items() if key.startswith(f"test/{name}")), float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--before", action="store_true", help="score the model as it is, too")
    parser.add_argument("--lines", type=Path, help="where each run is added as a line of JSON")
    given = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    if given.before:
        runs["before"] = [run("none", 0, 0, given.samples)]
        _say("before", 0, runs["before"][0], given.lines)
    for seed in given.seeds:
        for loss in given.losses:
            runs.setdefault(loss, []).append(run(loss, seed, given.steps, given.samples))
            _say(loss, seed, runs[loss][-1], given.lines)
    Console().print(table(runs))


def _say(loss: str, seed: int, found: dict[str, float], lines: Path | None) -> None:
    line = json.dumps({"loss": loss, "seed": seed, **found})
    print(line, flush=True)
    if lines is not None:
        with lines.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def table(runs: dict[str, list[dict[str, float]]]) -> Table:
    """Means over the seeds, with the least and the largest value."""
    made = Table()
    for column in ("loss", "seeds", *SCORES, "core seconds"):
        made.add_column(column, justify="right" if column != "loss" else "left")
    for loss, found in runs.items():
        cells = []
        for name in (*SCORES, "core seconds"):
            values = [one[name] for one in found]
            spread = f" ({min(values):.3g}..{max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        made.add_row(loss, str(len(found)), *cells)
    return made


if __name__ == "__main__":
    main()
