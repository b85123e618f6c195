"""What happens to runs when the machine fails: full and read-only disks, damaged files, workers, clocks.

    python -m tools.reliability.faults [--only WORDS]

Each case is a run of the real command. Printed are what a person reads and whether all is right: a message
of at most three lines that names the file, nothing half-written that is taken for whole, and a run that goes
on bit for bit. Disks are made in memory, which needs the right to mount (root, or `unshare --user -rm`).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.reliability.damaged import DAMAGED
from tools.reliability.fault_runs import Case, Verdict, may_mount, run, write_config
from tools.reliability.full_disks import FULL_DISKS
from tools.reliability.shared_faults import SHARED
from tools.reliability.together import TOGETHER

CASES: dict[str, Case] = {**FULL_DISKS, **DAMAGED, **TOGETHER, **SHARED}


def try_cases(names: list[str], place: Path) -> dict[str, Verdict]:
    """Try cases, each in a folder of its own, beside the run that was never disturbed."""
    whole = place / "whole"
    write_config(whole)
    said = run(whole, "fit", "--config", "run.yaml")
    assert said.code == 0, said.text
    found = {}
    for number, name in enumerate(names):
        folder = place / f"case-{number}"
        folder.mkdir()
        began = time.time()
        found[name] = CASES[name](folder, whole)
        seconds = f"{time.time() - began:.0f} s"
        print(f"{name} ({seconds}): {'; '.join(found[name].wrong) or 'right'}", flush=True)
        if found[name].wrong:
            for output in sorted(folder.rglob("*said-*")):
                print(output.read_text(errors="replace")[-1500:])
    return found


def main() -> int:
    """Print each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only the cases whose names contain this")
    names = [name for name in CASES if parser.parse_args().only in name]
    table = Table()
    for column in ("case", "right", "what a person reads"):
        table.add_column(column, overflow="fold")
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        if not may_mount(Path(place)):
            print("disks can't be made here; run it as root, or behind unshare --user -rm")
            return 1
        found = try_cases(names, Path(place).resolve())
        for name, verdict in found.items():
            said = escape(verdict.read.replace(place, "…"))
            table.add_row(name, "NO" if verdict.wrong else "yes", said)
    Console(width=150).print(table)
    right = sum(not verdict.wrong for verdict in found.values())
    print(f"{right} of {len(found)} cases are right")
    return int(right < len(found))


if __name__ == "__main__":
    sys.exit(main())
