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
    """What processes write down that are forked from this one, and that it reads. A context that ends it."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile("a+")  # noqa: SIM115 - it is closed with the context
        self._written: set[tuple[str, ...]] = set()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, *words: str) -> None:
        """Write words down, once in each process."""
        if words not in self._written:
            self._written.add(words)
            os.write(self._file.fileno(), (json.dumps(words) + "\n").encode())

    def read(self) -> list[list[str]]:
        """Everything that was written down."""
        self._file.seek(0)
        return [json.loads(line) for line in self._file]


class Recorder:
    """A plugin of pytest that sees which test calls which function, also in ranks that the test forks.

    Args:
        journal: Gets the calls as file, function and test, and the tests that failed.
    """

    def __init__(self, journal: Journal) -> None:
        self.seconds: dict[str, float] = {}
        """CPU seconds that each test takes, with those of the processes that it starts."""
        self._journal = journal
        self._now = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._now = item.nodeid
        begun = sum(os.times()[:4])
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - begun

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._journal.write(report.nodeid)

    def called(self, file: str, function: str) -> None:
        """A function of a module was called."""
        self._journal.write(file, function, self._now)


class Only:
    """A plugin of pytest that runs some tests only, the quickest first.

    Args:
        seconds: CPU seconds that each of them takes.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self._seconds]
        items[:] = sorted(chosen, key=lambda item: self._seconds[item.nodeid])


class Tests:
    """The tests of some modules, which are run once as they are, to see which of them calls which function.

    Args:
        modules: With their tests.

    Raises:
        RuntimeError: A test fails without any mistake.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        self._calling: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._noticed: set[str] = set()
        named = dict.fromkeys(test for module in modules for test in module.tests)
        # pytest runs a test twice that is named with its file.
        given = [test for test in named if "::" not in test or test.split("::")[0] not in named]
        own = {module.file: tuple(module.tests) for module in modules}
        with Journal() as journal:
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

    def notice(self, module: Module, mutant: Mutant) -> bool:
        """Whether a test of a module fails with a mistake in place."""
        live = module.function(mutant.function)
        tests = self._calling[module.file, mutant.function]
        if live is None or not tests:
            return False
        code = mutant.code(module.source, str(Path(module.file).resolve()))
        limit = LEAST_LIMIT + 4 * sum(self._seconds[test] for test in tests)
        kept = live.__code__
        live.__code__ = code
        try:
            failed, status = self._run(tests, limit)
        finally:
            live.__code__ = kept
        self._noticed.update(failed)
        return status != 0

    def failing_anyway(self) -> list[str]:
        """Those tests that noticed a mistake and fail without one as well, run once more in a forked process.

        They would notice whatever it is.
        """
        return self._run(self._noticed, math.inf)[0] if self._noticed else []

    def _run(self, tests: Collection[str], limit: float) -> tuple[list[str], int]:
        """The tests that fail in a forked process, up to the first, and its status when it ended."""
        with Journal() as journal:
            child = _forked(tests, self._seconds, [Recorder(journal)], limit)
            status = _ended(child, LEAST_WAITING + 4 * limit)
            return [words[0] for words in journal.read()], status


def _forked(tests: Collection[str], seconds: dict[str, float], plugins: list[object], limit: float) -> int:
    """The process that runs some tests and ends with 1 if one fails. It may take `limit` CPU seconds."""
    files = sorted({test.split("::")[0] for test in tests})
    only = Only({test: seconds[test] for test in tests})
    child = os.fork()
    if child == 0:
        os.setsid()
        if math.isfinite(limit):
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
        arguments = [*OPTIONS, "-x", *files]
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
