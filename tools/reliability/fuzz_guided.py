"""Feeds inputs to what reads people's input, and keeps those that reach code which none has reached before.

    pip install -e ".[fuzz]"
    python -m tools.reliability.fuzz_guided --target readers --seconds 180

The targets are those of `tools.reliability.fuzz`. libFuzzer, by atheris, changes byte strings, and
Hypothesis turns them into inputs. What is found is printed in its smallest form.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

INSTRUMENTED = ["lightning_vlm", "lightning_vlm_callbacks", "jinja2", "yaml"]
"""The packages whose reached code is watched."""
FIRST = 64
"""How many random byte strings there are at first."""
LONGEST = 4096
"""The most bytes that an input is made of."""
HANGS = 60
"""An input that takes more seconds ends the process, and its bytes are kept."""


class Hunt:
    """Tries one target with what libFuzzer proposes, until the time is over.

    Args:
        name: Of `TARGETS`.
        seconds: For how long.
        limit: The most seconds of processor time that an input may take.
        folder: Where libFuzzer keeps byte strings.
    """

    def __init__(self, name: str, seconds: float, limit: float, folder: Path) -> None:
        from hypothesis import Phase, given, settings
        from hypothesis.database import InMemoryExampleDatabase

        from tools.reliability import fuzz

        self.name = name
        self.folder = folder
        self.count = fuzz.Count()
        self.failed = False
        function, arguments = fuzz.TARGETS[name]
        checked = fuzz.checked(function, self.count, limit)
        self.test: Any = settings(
            fuzz.SETTINGS, database=InMemoryExampleDatabase(), phases=[Phase.reuse, Phase.shrink]
        )(given(**arguments)(checked))
        self.smallest = partial(fuzz.finding, self.test)
        self.end = time.monotonic() + seconds

    def __call__(self, data: bytes) -> None:
        """Try the input that these bytes stand for. Failing ones are kept in the test's database."""
        try:
            self.test.hypothesis.fuzz_one_input(data)
        except Exception:
            self.failed = True
        if time.monotonic() > self.end:
            os._exit(self.report())  # libFuzzer doesn't return

    def report(self) -> int:
        """Say what was done and found; give the status of the process."""
        kept = len(list(self.folder.iterdir())) - FIRST
        print(f"{self.name}: {self.count}, {kept} reached what none had reached before", flush=True)
        code = 0
        if self.failed:
            print(self.smallest() or "an input failed once, and not again", flush=True)
            code = 1
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


def hunt(name: str, seconds: float, limit: float) -> None:
    """Try one target; the process ends with it."""
    try:
        import atheris
    except ImportError:
        sys.exit('atheris isn\'t installed; write pip install -e ".[fuzz]" (on Linux)')
    folder = Path(tempfile.mkdtemp(prefix="fuzz-guided-"))
    for number in range(FIRST):
        (folder / f"{number}").write_bytes(random.randbytes(random.randint(8, LONGEST)))
    with atheris.instrument_imports(include=INSTRUMENTED):
        hunted = Hunt(name, seconds, limit, folder)
    options = ["len_control=0", "reduce_inputs=0", "rss_limit_mb=0", "verbosity=0"]
    options += [f"max_len={LONGEST}", f"timeout={HANGS}", f"artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *(f"-{option}" for option in options), str(folder)], hunted)
    atheris.Fuzz()


def main() -> int:
    """Try one target, or each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--target", help="without it, each in turn")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each target")
    parser.add_argument("--limit", type=float, default=10.0, help="the most seconds of an input")
    asked = parser.parse_args()
    if asked.target:
        hunt(asked.target, asked.seconds, asked.limit)
    from tools.reliability.fuzz_targets import TARGETS

    limits = ["--seconds", str(asked.seconds), "--limit", str(asked.limit)]
    command = [sys.executable, "-m", "tools.reliability.fuzz_guided", *limits]
    return max(subprocess.run([*command, "--target", name]).returncode for name in TARGETS)


if __name__ == "__main__":
    sys.exit(main())
