"""Kills runs at moments chosen by chance, lets them go on, and compares their ends with uninterrupted runs.

`python -m tools.reliability.crash_matrix --kills 200 --seed 0` prints a table of moments and runs: how many
were killed, and how many of these went on from a whole checkpoint (or rightly from the start) and ended like
the run that was never killed, bit for bit. It ends with 1 if any didn't.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from tests.support import tiny
from tools.reliability import answering, exporting
from tools.reliability.equal_ends import differences, end_of, leftovers, whole_checkpoints
from tools.reliability.full_run import METHODS, Case, fit, make_module, quiet
from tools.reliability.killed_runs import Ended, run
from tools.reliability.moments import MOMENTS, Lines, die, die_after, draw_line, torn_checkpoint, watched

ANY, TORN = "any time", "checkpoint, torn"
AGAIN = 0.25
"""The share of runs that are killed once more as they go on."""


class Outcome(NamedTuple):
    """What became of a run that was killed.

    Args:
        case: The run.
        moment: Where it was killed.
        killed: How often it was; 0 if it ended before.
        wrong: Everything that isn't as it must be; nothing is right.
    """

    case: Case
    moment: str
    killed: int
    wrong: tuple[str, ...]


class Whole(NamedTuple):
    """An uninterrupted run.

    Args:
        module: As it is before the run.
        end: Everything that it ended with.
        seconds: Time of the CPU of its first process.
        lines: Of each process, the lines of each call of each moment's functions.
        saves: How many checkpoints were written.
    """

    module: Any
    end: dict[str, Any]
    seconds: float
    lines: list[dict[str, list[int]]]
    saves: int


class Matrix:
    """Runs that are killed, in a folder.

    Args:
        folder: Where all of them write.
        cases: Which runs.
        seed: Of all that is left to chance.
    """

    def __init__(self, folder: Path, cases: Sequence[Case], seed: int) -> None:
        self.folder = folder
        self.cases = list(cases)
        self._chance = random.Random(seed)
        model = folder / "model"
        model.mkdir(parents=True)
        self.model = tiny.build("llava", model)
        modules = {method: make_module(method, self.model) for method in {case.method for case in cases}}
        self.whole = {case: self._uninterrupted(case, modules[case.method]) for case in self.cases}

    def moments(self, case: Case) -> list[str]:
        """At which moments a run can be killed."""
        aimed = [name for name in MOMENTS if any(lines.get(name) for lines in self.whole[case].lines)]
        return [ANY, TORN, *aimed]

    def draws(self, kills: int) -> Iterator[tuple[Case, str]]:
        """Runs and moments, so that all get nearly as many kills."""
        pairs = [(case, moment) for case in self.cases for moment in self.moments(case)]
        for round_ in range(0, kills, len(pairs)):
            self._chance.shuffle(pairs)
            yield from pairs[: kills - round_]

    def folder_of(self, case: Case) -> Path:
        """Where an uninterrupted run has written."""
        return self.folder / f"whole-{case.method}-{case.ranks}"

    def _uninterrupted(self, case: Case, module: Any) -> Whole:
        folder = self.folder_of(case)

        def timed(rank: int, pids: Sequence[int]) -> float:
            began = time.process_time()
            fit(case, module, folder)
            return time.process_time() - began

        def counted(rank: int, pids: Sequence[int]) -> dict[str, Any]:
            lines = {moment: Lines(moment) for moment in MOMENTS}
            with watched(MOMENTS, lines):
                fit(case, module, folder / "counted")
            return {name: one.calls for name, one in lines.items()}

        first = run(timed, case.ranks, folder / "ranks")
        second = run(counted, case.ranks, folder / "ranks")
        if any(first.codes) or any(second.codes):
            raise RuntimeError(f"{case}: the uninterrupted run failed; {folder / 'ranks'} says why")
        end = end_of(folder)
        twice = differences(end_of(folder / "counted"), end)
        if twice:
            raise RuntimeError(f"{case}: two uninterrupted runs differ in {twice[:5]}")
        lines = list(second.results)
        return Whole(module, end, first.results[0], lines, len(lines[0]["checkpoint"]))

    def kill(self, case: Case, moment: str, number: int) -> Outcome:
        """Kill a run, perhaps twice, let it go on to its end, and look at it."""
        folder = self.folder / f"run-{number}"
        wrong: list[str] = []
        killed = 0
        times = 2 if self._chance.random() < AGAIN else 1
        for _ in range(times):
            ended = self._run(case, folder, self._killer(case, moment))
            killed += ended.was_killed
            wrong += [f"process {rank} noticed nothing" for rank in ended.late]
            _, torn = whole_checkpoints(folder)
            wrong += torn
        ended = self._run(case, folder, None)
        if any(ended.codes):
            wrong.append(f"the run that goes on failed: {_last_line(folder / 'ranks')}")
        else:
            wrong += differences(end_of(folder), self.whole[case].end)
            wrong += [f"{name} is left" for name in leftovers(folder)]
        if not wrong:
            shutil.rmtree(folder)
        return Outcome(case, moment, killed, tuple(wrong))

    def _run(
        self, case: Case, folder: Path, killer: Callable[[int, Sequence[int], Callable[[], Any]], Any] | None
    ) -> Ended:
        module = self.whole[case].module

        def body(rank: int, pids: Sequence[int]) -> int:
            torch.rand(number)  # chance stands elsewhere in a new process
            go = lambda: fit(case, module, folder)  # noqa: E731
            if killer is None:
                go()
            else:
                killer(rank, pids, go)
            return rank

        number = self._chance.randrange(1, 100)
        return run(body, case.ranks, folder / "ranks")

    def _killer(self, case: Case, moment: str) -> Callable[[int, Sequence[int], Callable[[], Any]], Any]:
        """What runs a fit in each process and kills one of them, or all, at a moment."""
        whole, chance = self.whole[case], self._chance
        able = [rank for rank in range(case.ranks) if any(whole.lines[rank].get(moment, [1]))]
        victim = 0 if moment == TORN else chance.choice(able)
        takes_all = chance.random() < 0.5
        seconds = chance.uniform(0.0, 0.95) * whole.seconds
        number, share = chance.randrange(whole.saves), chance.random()
        aimed = None if moment in (ANY, TORN) else draw_line(whole.lines[victim][moment], chance)

        def killer(rank: int, pids: Sequence[int], go: Callable[[], Any]) -> None:
            others = [pid for pid in pids if pid != pids[rank]] if takes_all else []
            end = lambda: die(others)  # noqa: E731
            if rank != victim:
                go()
            elif moment == ANY:
                die_after(seconds, end)
                go()
            elif moment == TORN:
                with torn_checkpoint(number, share, end):
                    go()
            else:
                with watched(MOMENTS, {moment: Lines(moment, aimed, end)}):
                    go()

        return killer


def _last_line(ranks: Path) -> str:
    lines = [line for log in sorted(ranks.glob("*.log")) for line in log.read_text().splitlines() if line]
    return lines[-1] if lines else ""


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, help="a new folder, which keeps the runs that went wrong")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary, "runs")
        cases = [Case(method, ranks) for method in given.methods for ranks in given.ranks]
        outcomes = list(_all(folder, cases, given.kills, given.seed))
    return report(outcomes)


def _all(folder: Path, cases: Sequence[Case], kills: int, seed: int) -> Iterator[Outcome]:
    """Kill fits, then runs of `predict` and of `export`."""
    matrix = Matrix(folder, cases, seed)
    others = kills // 8
    number = 0
    for number, (case, moment) in enumerate(matrix.draws(kills - 2 * others)):
        yield _said(matrix.kill(case, moment, number), folder)
    modules = {case: whole.module for case, whole in matrix.whole.items()}
    alone = [case for case in cases if case.ranks == 1]
    checkpoints = {case: matrix.folder_of(case) / "checkpoints" / "latest.ckpt" for case in alone}
    for case, moment, killed, wrong in chain(
        answering.kills(folder, modules, others, seed),
        exporting.kills(folder, checkpoints, others, seed),
    ):
        yield _said(Outcome(case, moment, killed, wrong), folder)


def _said(outcome: Outcome, folder: Path) -> Outcome:
    line = [str(outcome.case), outcome.moment, outcome.killed, list(outcome.wrong)]
    with (folder / "outcomes.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    return outcome


def report(outcomes: Sequence[Outcome]) -> int:
    """Print the table.

    Returns:
        The exit code: 1 if anything was wrong.
    """
    cases = list(dict.fromkeys(outcome.case for outcome in outcomes))
    table = Table(title="kills / of these equal to the uninterrupted run", title_justify="left")
    for name in ("moment", *map(str, cases), "all"):
        table.add_column(name)
    for moment in [*dict.fromkeys(outcome.moment for outcome in outcomes), "all"]:
        of_moment = [one for one in outcomes if moment in (one.moment, "all")]
        cells = [_cell([one for one in of_moment if one.case == case]) for case in cases]
        table.add_row(moment, *cells, _cell(of_moment))
    Console(width=130).print(table)
    bad = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in bad:
        print(f"{outcome.case}, {outcome.moment}: {'; '.join(outcome.wrong[:5])}")
    print(
        f"{sum(outcome.killed for outcome in outcomes)} kills in {len(outcomes)} runs, {len(bad)} went wrong"
    )
    return 1 if bad else 0


def _cell(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    right = sum(outcome.killed for outcome in outcomes if not outcome.wrong)
    return f"{sum(outcome.killed for outcome in outcomes)} / {right}"


if __name__ == "__main__":
    sys.exit(main())
