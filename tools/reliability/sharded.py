"""Fits whose model is cut into pieces (FSDP2), beside the same fits of one process.

`python -m tools.reliability.sharded` takes a quarter of an hour. Each is a fit of a tiny model of a published
family on the CPU, in float32. Stretches of its samples are text alone, so that processes have different work,
the last batch of an epoch isn't full, and a step has two micro-batches. Printed is the largest difference of
any trained weight after all steps, and of the losses and norms that were logged, relative to the value.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

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
PLANS: dict[str, Any] = {"lora": "lora", "full": {"language": "full", "projector": "full"}}
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


def main() -> None:
    """Compare, print a table, and fail where something differs by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=sorted(tiny.FAMILIES))
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    table = Table("family", "trains", "processes", "weights differ by", "logged differ by", "")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for family in given.families:
            path = tiny.build(family, Path(folder, family))
            for name, plan in PLANS.items():
                fit = Fit(path, family, plan, given.steps, accumulate=2, batch=4, source=OfList(mixed()))
                (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
                for ranks in given.ranks:
                    weights, logged = compare(fit, ranks, alone)
                    is_fine = weights <= LIMIT and logged <= 1e-4
                    failed += not is_fine
                    table.add_row(
                        family,
                        name,
                        str(ranks),
                        f"{weights:.1e}",
                        f"{logged:.1e}",
                        "ok" if is_fine else "LOOK",
                    )
    Console().print(table)
    if failed:
        raise SystemExit(f"{failed} of them differ by more than rounding")


if __name__ == "__main__":
    main()
