"""Fits whose model is cut into pieces (FSDP2), beside the same fits of one process.

`python -m tools.reliability.sharded` takes a quarter of an hour. Each is a fit of a tiny model of a published
family on the CPU. Stretches of its samples are text alone, so that processes have different work, the last
batch of an epoch isn't full, and a step has two micro-batches. Printed is the largest difference of any
trained weight after all steps, and of the losses and norms that were logged, relative to the value.

With SGD in float32 they must be equal to 1e-6. AdamW divides by the size of gradients, which makes rounding
larger where they are tiny, and bfloat16 rounds by itself. There the yardstick is the same fit of one process
with micro-batches half as large, which differs from the other by rounding alone: twice of that is allowed.
"""

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from tests.support import tiny
from tests.support.packed import OfList
from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, distance, run_fit

FAMILIES = ("llava", "qwen2_vl", "qwen3_vl", "gemma3", "smolvlm", "internvl")
_EMBEDDINGS = {"model.language_model.embed_tokens": "full"}
PLANS: dict[str, Any] = {
    "lora": "lora",
    "full": {"language": "full", "projector": "full"},
    "dora": {"language": {"lora": {"r": 4, "dora": True}}},
    "rslora": {"language": {"lora": {"r": 4, "rslora": True}}},
    "tower": {"vision": {"lora": {"r": 4}}, "language": {"lora": {"r": 4}}},
    "embeddings": {"language.layers": {"lora": {"r": 4}}, "projector": "full", **_EMBEDDINGS},
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=1e-3),
}
LIMIT = 1e-6


def mixed(pictures: int = 17, texts: int = 6) -> list[Conversation]:
    """Samples with a picture, and among them stretches of text alone that fill a process's batch."""
    seen = list(Drawn("train", size=pictures))
    said = []
    for number in range(texts):
        turns = (
            Message("user", (Text(f"What is {number} and {number}?"),)),
            Message("assistant", (Text("Some."),)),
        )
        said.append(Conversation(turns, task="chat", source=f"text {number}"))
    return [*seen[:4], *said[:4], *seen[4:10], *said[4:], *seen[10:]]


def compare(fit: Fit, ranks: int, alone: dict[str, dict[str, Tensor]]) -> tuple[float, float]:
    """The largest difference of weights, and the largest relative one of what is logged, on any process."""
    weights, logged = 0.0, 0.0
    for found in call_on_ranks(run_fit, ranks, fit, ranks=ranks):
        weights = max(weights, distance(found["weights"], alone["weights"]))
        for name, value in alone["logged"].items():
            logged = max(logged, abs(found["logged"][name] - value).item() / max(abs(value).item(), 1e-12))
    return weights, logged


def rounding(fit: Fit, alone: dict[str, dict[str, Tensor]]) -> float:
    """How far weights may be from those of one process."""
    if fit.options["optimizer"] is OPTIMIZERS["sgd"] and fit.trainer["precision"] == "32-true":
        return LIMIT
    halves = fit._replace(batch=fit.batch // 2, accumulate=2 * fit.accumulate)
    (other,) = call_on_ranks(run_fit, 1, halves, ranks=1)
    return max(LIMIT, 2 * distance(other["weights"], alone["weights"]))


def main() -> None:
    """Compare, print a table, and fail where something differs by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=sorted(tiny.FAMILIES))
    parser.add_argument("--trains", nargs="+", default=("lora", "full"), choices=list(PLANS))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed", "bf16-true"))
    parser.add_argument("--optimizer", default="sgd", choices=list(OPTIMIZERS))
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    table = Table("family", "trains", "processes", "weights differ by", "at most", "logged differ by", "")
    failed = 0
    options = {"optimizer": OPTIMIZERS[given.optimizer]}
    with tempfile.TemporaryDirectory() as folder:
        for family, name in itertools.product(given.families, given.trains):
            path = Path(folder, family)
            if not path.exists():
                tiny.build(family, path)
            precision = {"precision": given.precision}
            fit = Fit(path, family, PLANS[name], given.steps, 2, 4, options, OfList(mixed()), precision)
            (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
            limit = rounding(fit, alone)
            for ranks in given.ranks:
                weights, logged = compare(fit, ranks, alone)
                is_fine = weights <= limit and logged <= (1e-2 if "bf16" in given.precision else 1e-4)
                failed += not is_fine
                verdict = "ok" if is_fine else "LOOK"
                measured = f"{weights:.1e}", f"{limit:.1e}", f"{logged:.1e}"
                table.add_row(family, name, str(ranks), *measured, verdict)
    Console().print(table)
    if failed:
        raise SystemExit(f"{failed} of them differ by more than rounding")


if __name__ == "__main__":
    main()
