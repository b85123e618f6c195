"""NaN, infinity and overflow of float16 in each kind of module and at each hook, with NonFiniteGuard.

`python -m tools.reliability.numeric_faults` runs `--cases` of all cases, chosen by `--seed` so that each
fault comes once before any comes again. Each is a fit of four steps of a tiny LLaVA on the CPU, whose third
step has a fault in one micro-batch. Three things are asked of it:

- named: a warning has the step and the module (or says that nothing in the model makes it), the report the
  samples of the micro-batch and what is wrong with it;
- survived: the run goes to its end, with finite weights and a finite state of the optimizer;
- equal: weights, the optimizer's state, learning rates, running statistics and all that is logged of other
  steps are bit for bit those of a run whose data never had the samples of that step. Dropout and learning
  rates are there those of the places that steps have in the whole run. Processes have the same weights.

Float16 is that of a CPU, with the loss scaler that a GPU has; no case runs on a GPU.
"""

import argparse
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from tests.support import tiny
from tools.reliability.faulty_runs import BAD_STEP, STEPS, Case, Found, run
from tools.reliability.planted_faults import HOOKS, MODULES, OF_BATCH, Fault, all_faults

ONLY_FULL = {"vision embedding", "vision norm", "token embedding"}
"""Places whose outputs have no gradient where LoRA trains behind them."""


class Verdict(NamedTuple):
    """What is wrong with a run, as sentences; nothing where all is right."""

    named: list[str]
    survived: list[str]
    equal: list[str]


def all_cases(seed: int) -> list[Case]:
    """Every case, in an order in which each fault comes before any comes again."""
    chance = random.Random(seed)
    of_fault: dict[Fault, list[Case]] = defaultdict(list)
    for fault in all_faults():
        for method in ("lora", "full"):
            if method == "full" and fault.place.startswith("LoRA"):
                continue
            if method == "lora" and fault.way == "backward" and fault.place in ONLY_FULL:
                continue
            for accumulate, at in ((1, 0), (3, 0), (3, 1), (3, 2)):
                is_last = at == accumulate - 1
                if fault.place == "on_before_optimizer_step" and not is_last:
                    continue
                for ranks in (1, 2):
                    of_fault[fault].append(Case(fault, method, accumulate, at, ranks))
    for cases in of_fault.values():
        chance.shuffle(cases)
    ordered = []
    for turn in range(max(map(len, of_fault.values()))):
        faults = [fault for fault, cases in of_fault.items() if turn < len(cases)]
        chance.shuffle(faults)
        ordered += [of_fault[fault][turn] for fault in faults]
    return ordered


class Matrix:
    """Runs cases, and the run of each kind that never sees the samples once.

    Args:
        model: The folder of the model.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._unseen: dict[tuple[Any, ...], Found] = {}

    def judge(self, case: Case) -> Verdict:
        """Run a case, and say what is wrong."""
        found = run(case, self._model)
        if not any(rank["planted"] for rank in found.ranks):
            raise AssertionError(f"{case}: the fault was never planted")
        halved = found.ranks[0]["halved"]
        # Hooks at the head make it go another way through the loss.
        key = (
            case.method,
            case.accumulate,
            case.ranks,
            case.precision,
            case.fault.place == "LM head",
            halved,
        )
        if key not in self._unseen:
            self._unseen[key] = run(case, self._model, seen=False, halved=halved)
        return Verdict(why_unnamed(case, found), why_lost(found), differences(found, self._unseen[key]))


def why_unnamed(case: Case, found: Found) -> list[str]:
    """What is missing in what a run says of its fault."""
    fault = case.fault
    lines = [line for line in found.ranks[0]["lines"] if line.startswith("NonFiniteGuard: step")]
    if is_left_to_scaler(fault):
        too_large = "the squares of the gradients are too large for float32"  # where they are float32
        return [f"said: {line}" for line in lines if too_large not in line]
    if len(lines) != 1:
        return [f"expected one line, found {lines}"]
    (line,), report = lines, "\n".join(found.reports)
    path = found.ranks[-1]["path"]
    words = [f"step {BAD_STEP}: "]
    if fault.way == "backward":
        words.append(_goes_bad(path, line))
    elif fault.place in MODULES:
        # Outputs of a norm are float32, and overflow in what takes them.
        is_here = f"comes out of {path} (" in line or fault.value != "overflow"
        words.append(f"comes out of {path} (" if is_here else f"comes out of {_around(path)}.")
    elif fault.place in HOOKS:
        words.append("not reproducible")
    elif fault.place == "pixels":
        words.append("comes into model.model ")
    if case.ranks > 1 and fault.way != "backward" and fault.place not in HOOKS:
        words.append(f"on rank {case.ranks - 1}")
    missing = [f"{word!r} isn't in: {line}" for word in words if word not in line]
    if fault.place not in HOOKS:
        missing += [f"the report lacks {word}" for word in found.ranks[-1]["sources"] if word not in report]
    of_batch = {"pixels": "inputs.pixel_values: 1 of ", "loss weights": "targets.weights: 1 of "}
    if fault.place in OF_BATCH and of_batch[fault.place] not in report:
        missing.append(f"the report lacks {of_batch[fault.place]!r}")
    if not any(line.startswith(event) for event in found.events):
        missing.append(f"the run report has {found.events}")
    return missing


def _goes_bad(path: str, line: str) -> str:
    """What a line must say of a gradient that goes bad between a module's output and what takes it."""
    if not path:
        return "the gradient goes bad in training_step"
    if f", after {path};" in line:
        return path
    return f"the gradient goes bad in {_around(path)}."


def _around(path: str) -> str:
    """The module that a module is part of, for those of LoRA the layer."""
    return path.partition(".lora_")[0] if ".lora_" in path else path.rpartition(".")[0]


def is_left_to_scaler(fault: Fault) -> bool:
    """Whether only gradients overflow, which a loss scaler skips and which is usual."""
    return fault.value == "overflow" and (fault.way == "backward" or fault.place == "training_step")


def why_lost(found: Found) -> list[str]:
    """Why a run hasn't survived."""
    wrong = []
    for number, rank in enumerate(found.ranks):
        if rank["error"]:
            wrong.append(f"rank {number}: {rank['error']}")
        if rank["steps"] != STEPS:
            wrong.append(f"rank {number}: {rank['steps']} steps")
        for name, tensor in {**rank["weights"], **rank["optimizer"]}.items():
            if not tensor.isfinite().all():
                wrong.append(f"rank {number}: {name} isn't finite")
    return wrong


def differences(found: Found, unseen: Found) -> list[str]:
    """What isn't as in the run that never saw the samples."""
    wrong = []
    for number, (rank, other) in enumerate(zip(found.ranks, unseen.ranks, strict=True)):
        for kind in ("weights", "optimizer"):
            if rank[kind].keys() != other[kind].keys():
                wrong.append(f"rank {number}: other {kind}")
                continue
            for name, tensor in rank[kind].items():
                if not torch.equal(tensor, other[kind][name]):
                    wrong.append(f"rank {number}: {kind} {name}")
        for kind in ("rates", "usual"):
            if rank[kind] != other[kind]:
                wrong.append(f"rank {number}: {kind} {rank[kind]}, expected {other[kind]}")
        wrong += [f"rank {number}: {name}" for name in _logged_otherwise(rank["logged"], other["logged"])]
    first, *others = (rank["weights"] for rank in found.ranks)
    for weights in others:
        wrong += [f"ranks differ: {name}" for name in first if not torch.equal(weights[name], first[name])]
    return wrong


def _logged_otherwise(logged: dict[str, dict[int, float]], other: dict[str, dict[int, float]]) -> list[str]:
    wrong = []
    for name in logged.keys() | other.keys():
        if name in ("nonfinite/skipped", "epoch"):
            continue
        values = {step: value for step, value in logged.get(name, {}).items() if step != BAD_STEP}
        moved = {step + (step >= BAD_STEP): value for step, value in other.get(name, {}).items()}
        if values != moved:
            wrong.append(f"{name} {values}, expected {moved}")
    return wrong


def main() -> None:
    """Run cases, print a table, and fail where anything isn't right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--first", type=int, default=0, help="begin at this case")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no case after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", help="only this one")
    given = parser.parse_args()
    console = Console()
    rows: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    cases = [case for case in all_cases(given.seed) if given.place in (None, case.fault.place)]
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(tiny.build("llava", Path(folder)))
        until = time.monotonic() + given.seconds
        for case in cases[given.first :][: given.cases]:
            if time.monotonic() > until:
                break
            verdict = matrix.judge(case)
            fault = case.fault
            rows[fault.place if fault.way == "hook" else f"{fault.place}, {fault.way}", fault.value].append(
                verdict
            )
            for kind, wrong in verdict._asdict().items():
                for sentence in wrong[:3]:
                    console.print(f"{case}: not {kind}: {sentence}", markup=False)
    table = Table("place", "fault", "cases", *Verdict._fields)
    for (place, value), verdicts in sorted(rows.items()):
        right = [str(sum(not wrong for wrong in column)) for column in zip(*verdicts, strict=True)]
        table.add_row(place, value, str(len(verdicts)), *right)
    console.print(table)
    failed = sum(any(verdict) for verdicts in rows.values() for verdict in verdicts)
    total = sum(map(len, rows.values()))
    console.print(f"{total - failed} of {total} cases are named, survived and equal")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
