"""Whether the tests notice small mistakes in what has to be right: losses, masks, batches, sampling, ranks.

    python -m tools.reliability.mutants                                # 40 mistakes in each module
    python -m tools.reliability.mutants --module lightning_vlm/losses/language.py --sample 0    # all of one

`mutants.yaml` says which tests are of which module. They are run once to see which test calls which function.
Then each mistake is put into the function of a forked process, and the tests that call it are run there, the
quickest first, until one fails. Ranks that a test forks have the mistake too. A mistake that no test notices
is printed, unless the file explains why it can't be noticed.

mutmut and cosmic-ray aren't used: one runs the whole suite first to learn what this command learns of a few
files, and the other begins a new interpreter for each mistake. Importing torch, transformers and Lightning
takes 10 CPU seconds here; most mistakes are noticed in less than one.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

import lightning_vlm  # noqa: F401 - before transformers
from tools.reliability.mutant_tests import Module, Tests

TABLE = Path(__file__).with_name("mutants.yaml")


class Share(NamedTuple):
    """How many of some mistakes are noticed.

    Args:
        noticed: How many.
        all: Of how many.
    """

    noticed: int
    all: int

    def interval(self) -> tuple[float, float]:
        """Between which shares the true one lies, by Wilson's interval at 95%.

        >>> [round(end, 3) for end in Share(90, 100).interval()]
        [0.826, 0.945]
        """
        if not self.all:
            return 0.0, 1.0
        z = 1.959964
        share = self.noticed / self.all
        middle = share + z * z / (2 * self.all)
        half = z * math.sqrt(share * (1 - share) / self.all + z * z / (4 * self.all**2))
        return (middle - half) / (1 + z * z / self.all), (middle + half) / (1 + z * z / self.all)

    def __str__(self) -> str:
        low, high = self.interval()
        share = self.noticed / max(self.all, 1)
        return f"{self.noticed} of {self.all} noticed: {share:.1%} ({low:.1%} to {high:.1%})"


class Outcome(NamedTuple):
    """What became of the mistakes in a module.

    Args:
        share: How many are noticed of those that are not explained.
        explained: How many are.
        survived: The names of those that are neither, with their places.
    """

    share: Share
    explained: int
    survived: list[str]


def try_module(module: Module, tests: Tests, same: Container[str], sample: int, seed: int) -> Outcome:
    """Try mistakes in a module.

    Args:
        module: Which.
        tests: Its own, among others.
        same: Names of mistakes that can't be noticed.
        sample: How many mistakes are drawn; 0 takes all.
        seed: Draws them.
    """
    tried = module.mutants
    if sample and sample < len(tried):
        tried = random.Random(f"{seed} {module.file}").sample(tried, sample)
    others = [mutant for mutant in tried if mutant.name not in same]
    survivors = [mutant for mutant in others if not tests.notice(module, mutant)]
    return Outcome(
        Share(len(others) - len(survivors), len(others)),
        len(tried) - len(others),
        [f"{module.file}:{mutant.line}: {mutant.name}" for mutant in survivors],
    )


def main(arguments: list[str]) -> int:
    """Print what survives in each module and the share that is noticed; 1 if it is below 90% or unsure."""
    table = yaml.safe_load(TABLE.read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--module", choices=table, action="append", metavar="FILE", help="only this module")
    parser.add_argument("--sample", type=int, default=40, help="mistakes for each module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which mistakes are drawn")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    begun = time.monotonic()
    modules = [Module(file, table[file]["tests"]) for file in given.module or table]
    tests = Tests(modules)
    print(f"tests as they are: {time.monotonic() - begun:.0f} s", flush=True)
    outcomes = []
    for module in modules:
        begun = time.monotonic()
        same = table[module.file].get("same", {})
        outcome = try_module(module, tests, same, given.sample, given.seed)
        print(*outcome.survived, sep="\n", end="\n" if outcome.survived else "")
        taken = f"{time.monotonic() - begun:.0f} s"
        print(f"{module.file}: {outcome.share}, {outcome.explained} explained, {taken}", flush=True)
        outcomes.append(outcome)
    total = Share(sum(one.share.noticed for one in outcomes), sum(one.share.all for one in outcomes))
    print(f"{total}, {sum(one.explained for one in outcomes)} explained in {TABLE.name}")
    failing = tests.failing_anyway()
    for test in failing:
        print(f"{test} fails without a mistake when it is run again, and may have noticed none")
    return int(bool(failing) or total.noticed < 0.9 * total.all)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
