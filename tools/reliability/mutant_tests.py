"""The tests of functions: which test calls which function, and whether they notice a mistake in one."""

import functools
import importlib
import json
import math
import os
import resource
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from tools.reliability.mutations import Mutant, mutants_of, watched

OPTIONS = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "--no-header",
    "-W",
    "ignore",
    "--doctest-modules",
]
LEAST_LIMIT = 5.0
"""CPU seconds that tests of a mutant may take at least; one that takes longer never ends, and is noticed."""
LEAST_WAITING = 60.0
"""Seconds that a process may take at least; a mistake with which it waits for ever is noticed too."""


class Module:
    """A module whose functions get mistakes.

    Args:
        file: Of the module, from the root of the repository.
        tests: Files of its tests, or tests in one, as `file::test`; its doctests are among its tests too.
    """

    def __init__(self, file: str, tests: Sequence[str]) -> None:
        self.file = file
        self.source = Path(file).read_text()
        self.mutants = mutants_of(self.source)
        self.tests = [*tests, *([file] if ">>>" in self.source else [])]
        name = file.removeprefix("callbacks/").removesuffix(".py").replace("/", ".")
        self._module = importlib.import_module(name)

    def function(self, name: str) -> FunctionType | None:
        """The function of the module that has a name, whatever it is wrapped in."""
        return _function(self._module, name)

    @contextmanager
    def watched(self, called: Callable[[str, str], None]) -> Iterator[None]:
        """Let each function of the module say that it is called, with the module's file and its own name."""
        codes = watched(self.source, str(Path(self.file).resolve()))
        lives = {name: live for name in codes if (live := self.function(name)) is not None}
        kept = {name: live.__code__ for name, live in lives.items()}
        vars(self._module)["__called__"] = functools.partial(called, self.file)
        for name, live in lives.items():
            live.__code__ = codes[name]
        try:
            yield
        finally:
            for name, live in lives.items():
                live.__code__ = kept[name]


class Journal:
    """What processes write down that are forked from this one, and that it reads.

    Args:
        file: To which all of them append.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._end = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._written: set[tuple[str, ...]] = set()

    def write(self, *words: str) -> None:
        """Write words down, once in each process."""
        if words not in self._written:
            self._written.add(words)
            os.write(self._end, (json.dumps(words) + "\n").encode())

    def read(self) -> list[list[str]]:
        """Everything that was written down."""
        return [json.loads(line) for line in self._file.read_text().splitlines()]


class Recorder:
    """A plugin of pytest that sees which test calls which function, also in ranks that the test forks.

    Args:
        journal: Gets the calls as file, function and test, and the tests that failed.
    """

    def __init__(self, journal: Journal) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """How long each test takes."""
        self._journal = journal
        self._now = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._now = item.nodeid
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self._journal.write(report.nodeid)

    def called(self, file: str, function: str) -> None:
        """A function of a module was called."""
        self._journal.write(file, function, self._now)


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


class Tests:
    """The tests of some modules.

    They are run once as they are, to see which of them calls which function, and once more in a forked
    process, as they are with a mistake: a test that fails there without one would notice whatever it is.

    Args:
        modules: With their tests.

    Raises:
        RuntimeError: A test fails without any mistake.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        self._calling: dict[tuple[str, str], set[str]] = defaultdict(set)
        given = dict.fromkeys(test for module in modules for test in module.tests)
        given = [test for test in given if test.split("::")[0] == test or test.split("::")[0] not in given]
        own = {module.file: tuple(module.tests) for module in modules}
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder, "calls"))
            recorder = Recorder(journal)
            with ExitStack() as watching:
                for module in modules:
                    watching.enter_context(module.watched(recorder.called))
                _quietly(lambda: pytest.main([*OPTIONS, "-x", *given], plugins=[recorder]))
            for words in journal.read():
                if len(words) == 1:
                    raise RuntimeError(f"{words[0]} fails without any mistake")
                file, function, test = words
                if test.startswith(own[file]):
                    self._calling[file, function].add(test)
            self._seconds = dict(recorder.seconds)
            self.left_out = self._failing_again(Path(folder, "again"))
            """Tests that fail in a forked process without any mistake, and therefore count for nothing."""

    def _failing_again(self, file: Path) -> list[str]:
        tests = {test for calling in self._calling.values() for test in calling}
        journal = Journal(file)
        child = _forked(tests, self._seconds, [], [Recorder(journal)], limit=None)
        os.waitpid(child, 0)
        failing = [words[0] for words in journal.read()]
        for calling in self._calling.values():
            calling.difference_update(failing)
        return failing

    def notice(self, module: Module, mutant: Mutant) -> bool:
        """Whether a test of a module fails with a mistake in place."""
        live = module.function(mutant.function)
        tests = self._calling[module.file, mutant.function]
        if live is None or not tests:
            return False
        code = mutant.code(module.source, str(Path(module.file).resolve()))
        limit = max(LEAST_LIMIT, 10 * sum(self._seconds[test] for test in tests))
        kept = live.__code__
        live.__code__ = code
        try:
            child = _forked(tests, self._seconds, ["-x"], [], limit)
        finally:
            live.__code__ = kept
        return _ended(child, max(LEAST_WAITING, 3 * limit)) != 0


def _forked(
    tests: Collection[str],
    seconds: dict[str, float],
    options: list[str],
    plugins: list[object],
    limit: float | None,
) -> int:
    """The process that runs some tests and ends with 1 if one fails. It may take `limit` CPU seconds."""
    files = sorted({test.split("::")[0] for test in tests})
    only = Only({test: seconds[test] for test in tests})
    child = os.fork()
    if child == 0:
        os.setsid()
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
        arguments = [*OPTIONS, *options, *files]
        os._exit(_quietly(lambda: pytest.main(arguments, plugins=[*plugins, only])) != 0)
    return child


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
