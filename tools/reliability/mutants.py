"""Whether the tests notice small mistakes in what has to be right: losses, masks, batches, sampling, ranks.

    python -m tools.reliability.mutants                                # 40 mistakes in each module
    python -m tools.reliability.mutants --module lightning_vlm/losses/language.py --sample 0    # all of one

`mutants.yaml` says which tests are of which module. They are run once to see which test calls which function.
Then each mistake is put into the function of a forked process, and the tests that call it are run there until
one fails. A mistake that no test notices is printed, unless the file explains why it can't be noticed.

mutmut and cosmic-ray aren't used: one runs the whole suite first to learn what this command learns of a few
files, and the other begins a new interpreter for each mistake. Importing torch, transformers and Lightning
takes 10 CPU seconds here; most mistakes are noticed in less than one.
"""

import argparse
import functools
import importlib
import math
import os
import random
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import lightning_vlm  # noqa: F401 - before transformers
from tools.reliability.mutations import Mutant, mutants_of, watched

TABLE = Path(__file__).with_name("mutants.yaml")
OPTIONS = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "-W", "ignore"]
LEAST_LIMIT = 20.0
"""CPU seconds that tests of a mutant may take at least; one that takes longer never ends, and is noticed."""
WAITING = 30
"""How many times as long a process may wait; a mistake with which it waits for ever counts as noticed too."""


class Recorder:
    """A plugin of pytest that sees which test calls which function of a module."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = defaultdict(set)
        """The tests that call each function."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._now = item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def called(self, function: str) -> None:
        """A function of the module was called."""
        self.tests[function].add(self._now)


class Only:
    """A plugin of pytest that runs some tests only, the quickest first.

    Args:
        seconds: How long each of them takes.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._seconds]
        items[:] = sorted(chosen, key=lambda item: self._seconds[item.nodeid])


class Module:
    """A module and its tests.

    Args:
        file: Of the module, from the root of the repository.
        tests: Files of tests; doctests of the module are among its tests.
    """

    def __init__(self, file: str, tests: list[str]) -> None:
        self.file = Path(file).resolve()
        self.source = self.file.read_text()
        self.mutants = mutants_of(self.source)
        name = file.removeprefix("callbacks/").removesuffix(".py").replace("/", ".")
        self._module = importlib.import_module(name)
        self._arguments = [*OPTIONS, "--doctest-modules", *tests, *([file] if ">>>" in self.source else [])]
        self._recorder = Recorder()

    def watch(self) -> float:
        """Run the tests as they are, and see which calls which function; returns the seconds it took.

        Raises:
            RuntimeError: A test fails without any mistake.
        """
        begun = time.monotonic()
        codes = watched(self.source, str(self.file))
        lives = {name: _function(self._module, name) for name in codes}
        kept = {name: live.__code__ for name, live in lives.items() if live is not None}
        vars(self._module)["__called__"] = self._recorder.called
        for name in kept:
            lives[name].__code__ = codes[name]  # type: ignore[union-attr]
        if _quietly(lambda: pytest.main(self._arguments, plugins=[self._recorder])) != 0:
            raise RuntimeError(f"{self.file.name}: its tests fail as they are")
        for name, code in kept.items():
            lives[name].__code__ = code  # type: ignore[union-attr]
        return time.monotonic() - begun

    def notices(self, mutant: Mutant) -> bool:
        """Whether a test fails with a mistake in place."""
        live = _function(self._module, mutant.function)
        code = mutant.code(self.source, str(self.file))
        tests = self._recorder.tests[mutant.function]
        if live is None or not tests:
            return False
        seconds = {test: self._recorder.seconds[test] for test in tests}
        files = sorted({test.split("::")[0] for test in tests})
        options = [*OPTIONS, "--doctest-modules", *files]
        limit = max(LEAST_LIMIT, 10 * sum(seconds.values()))
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
            live.__code__ = code
            os._exit(_quietly(lambda: pytest.main(options, plugins=[Only(seconds)])) != 0)
        return _ended(child, WAITING * limit) != 0


def _ended(child: int, limit: float) -> int:
    """The status of a child process when it has ended, or when it was killed as it took too long."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _quietly(run: Callable[[], Any]) -> int:
    """Run something that prints, without what it prints."""
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        return int(run())
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)


def _function(module: ModuleType, name: str) -> FunctionType | None:
    """The function of a module that has a name, whatever it is wrapped in."""
    found: Any = module
    for part in name.split("."):
        found = vars(found).get(part)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, functools.cached_property):
        found = found.func
    elif isinstance(found, staticmethod | classmethod):
        found = found.__func__
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    return found if isinstance(found, FunctionType) else None


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
        z = 1.959964
        share = self.noticed / self.all
        middle = share + z * z / (2 * self.all)
        half = z * math.sqrt(share * (1 - share) / self.all + z * z / (4 * self.all**2))
        return (middle - half) / (1 + z * z / self.all), (middle + half) / (1 + z * z / self.all)

    def __str__(self) -> str:
        low, high = self.interval()
        share = self.noticed / self.all
        return f"{self.noticed} of {self.all} noticed: {share:.1%} ({low:.1%} to {high:.1%})"


def try_module(file: str, entry: dict[str, Any], sample: int, seed: int) -> tuple[Share, int, list[str]]:
    """Try mistakes in a module.

    Args:
        file: Of the module.
        entry: Its `tests`, and `same`: why mistakes can't be noticed, by their names.
        sample: How many mistakes are drawn; 0 takes all.
        seed: Draws them.

    Returns:
        The share that is noticed, without what is explained; how many are explained; names of the others.
    """
    module = Module(file, entry["tests"])
    module.watch()
    explained = entry.get("same", {})
    tried = module.mutants
    if sample and sample < len(tried):
        tried = random.Random(f"{seed} {file}").sample(tried, sample)
    same = [mutant for mutant in tried if mutant.name in explained]
    others = [mutant for mutant in tried if mutant.name not in explained]
    survived = [f"{file}:{mutant.line}: {mutant.name}" for mutant in others if not module.notices(mutant)]
    return Share(len(others) - len(survived), len(others)), len(same), survived


def main(arguments: list[str]) -> int:
    """Print what survives in each module and the share that is noticed; 1 if it is below 90%."""
    table = yaml.safe_load(TABLE.read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--module", choices=table, action="append", metavar="FILE", help="only this module")
    parser.add_argument("--sample", type=int, default=40, help="mistakes for each module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which mistakes are drawn")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    shares = []
    explained = 0
    for file in given.module or list(table):
        begun = time.monotonic()
        share, same, survived = try_module(file, table[file], given.sample, given.seed)
        print(*survived, sep="\n", end="\n" if survived else "")
        print(f"{file}: {share}, {same} explained, {time.monotonic() - begun:.0f} s", flush=True)
        shares.append(share)
        explained += same
    total = Share(sum(one.noticed for one in shares), sum(one.all for one in shares))
    print(f"{total}, {explained} explained in {TABLE.name}")
    return int(total.noticed < 0.9 * total.all)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
