"""Feeds random inputs to what reads people's input.

    python -m tools.reliability.fuzz --target readers --seconds 180

Each input must give one of our own errors or what is right, within `--limit` seconds. Hypothesis draws them,
guided by the time that they take. What is found is printed in its smallest form.
"""

import argparse
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings, target

from tools.reliability.fuzz_targets import REFUSALS, TARGETS

BATCH = 200
"""How many inputs are drawn between two looks at the clock."""
SETTINGS = settings(
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.target, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)
"""Those of each test."""


class Count:
    """How many inputs were tried, how many were refused, and how long the slowest took in seconds."""

    def __init__(self) -> None:
        self.tried = self.refused = 0
        self.slowest = 0.0

    def __str__(self) -> str:
        return f"{self.tried:,} inputs, {self.refused:,} refused, the slowest {self.slowest:.2f} s"


def checked(function: Callable[..., Any], count: Count, limit: float) -> Callable[..., None]:
    """A function that takes one input, and fails unless it is right or refused, and quick.

    Args:
        function: Of a target.
        count: Where inputs are counted.
        limit: The most seconds of processor time.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)  # what files note

    def check(**arguments: Any) -> None:
        count.tried += 1
        start = time.process_time()
        try:
            function(**arguments)
        except REFUSALS:
            count.refused += 1
        seconds = time.process_time() - start
        count.slowest = max(count.slowest, seconds)
        assert seconds < limit, f"it takes {seconds:.1f} s"
        target(seconds, label="seconds")

    return check


def finding(check: Callable[[], None]) -> str | None:
    """Call a test; give what fails, with its smallest input, or None."""
    try:
        check()
    except Exception as error:
        notes = "\n".join(getattr(error, "__notes__", ()))
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})\n{notes}"
    return None


def fuzz(name: str, seconds: float, limit: float = 10.0, first: int | None = None) -> tuple[Count, list[str]]:
    """Try one target for some time.

    Args:
        name: Of `TARGETS`.
        seconds: For how long; 0 draws one batch.
        limit: The most seconds of processor time that an input may take.
        first: The first seed; None is another one each time.

    Returns:
        What was done, and what was found: the smallest input of each failure and its traceback.
    """
    function, arguments = TARGETS[name]
    count = Count()
    found: list[str] = []
    end = time.monotonic() + seconds
    number = random.randrange(10**6) if first is None else first
    while True:
        drawn = seed(number)(given(**arguments)(checked(function, count, limit)))
        what = finding(settings(SETTINGS, max_examples=BATCH)(drawn))
        if what and not any(what.splitlines()[0] == before.splitlines()[0] for before in found):
            found.append(what)
        number += 1
        if time.monotonic() >= end:
            return count, found


def main() -> int:
    """Try one target, or each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", choices=TARGETS, help="without it, each in turn")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each target")
    parser.add_argument("--limit", type=float, default=10.0, help="the most seconds of an input")
    asked = parser.parse_args()
    code = 0
    for name in [asked.target] if asked.target else TARGETS:
        count, found = fuzz(name, asked.seconds, asked.limit)
        print(f"{name}: {count}, {len(found)} found", flush=True)
        for what in found:
            print(what)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
