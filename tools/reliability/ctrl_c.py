"""Ctrl-C, twice, at moments spread over a command: one readable ending, and nothing half-written.

    python -m tools.reliability.ctrl_c [--moments N] [--pause SECONDS] [COMMAND ...]

Each run is the real command, forked; the moments are fractions of the time that it takes undisturbed.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from lightning_vlm_callbacks.checkpoint_files import damage_of
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tools.reliability.fault_runs import Said, end, run, start, write_config
from tools.reliability.full_disks import QUESTION

PAUSE = 0.2
"""Seconds between the first Ctrl-C and the second."""
FIT = ("fit", "--config", "run.yaml")
PREDICT = ("predict", "--config", "{whole}/run.yaml", "--ckpt_path", "{whole}/kept/latest.ckpt")
COMMANDS: dict[str, tuple[str, ...]] = {
    "fit": FIT,
    "predict": (*PREDICT, "--data.predict", "{whole}/questions.jsonl", "--out", "answers.jsonl"),
    "export": ("export", "--ckpt_path", "{whole}/kept/latest.ckpt", "--out", "model"),
}


def interrupted(folder: Path, words: list[str], after: float, pause: float) -> Said:
    """Run a command that gets Ctrl-C after some seconds and again after a pause."""
    process = start(folder, *words)
    time.sleep(after)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGINT)  # nothing if it has ended: it hasn't been waited for
    return end(process)


def wrong_in(folder: Path, said: Said) -> list[str]:
    """What isn't as it should be."""
    last = said.text.strip().splitlines()[-1:] or [""]
    conditions = {
        "a traceback": "Traceback" not in said.text,
        f"ends with {last[0]!r}": said.code == 0 or "stopped by Ctrl-C" in said.text[-1000:],
        f"exit code {said.code}": said.code in (0, 130),
        "something half-written": not [*folder.rglob(".unf*"), *folder.parent.glob(".unf*")],
        "a damaged checkpoint": not any(map(damage_of, folder.rglob("*.ckpt"))),
        "a link to nothing": all(file.exists() for file in folder.rglob("*.ckpt")),
        "half an answer": all(_is_json(line) for line in _lines(folder / "answers.jsonl")),
        "half a model": not (folder / "model").exists() or (folder / "model/config.json").exists(),
    }
    return [what for what, holds in conditions.items() if not holds]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _is_json(line: str) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False


def main() -> int:
    """Print each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="*", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--moments", type=int, default=8, help="of each command")
    parser.add_argument("--pause", type=float, default=PAUSE, help="seconds until the second Ctrl-C")
    options = parser.parse_args()
    table = Table("command", "after", "code", "wrong", "what a person reads last")
    number = failures = 0
    with tempfile.TemporaryDirectory(prefix="ctrl-c-") as place:
        whole = Path(place).resolve() / "whole"
        write_config(whole)
        (whole / "questions.jsonl").write_text(QUESTION * 20)
        assert run(whole, *FIT).code == 0
        for name in options.command or COMMANDS:
            words = [word.format(whole=whole) for word in COMMANDS[name]]
            began = time.monotonic()
            prepared(whole.parent / f"{name}-whole")
            assert run(whole.parent / f"{name}-whole", *words).code == 0
            takes = time.monotonic() - began
            for moment in range(options.moments):
                folder = prepared(whole.parent / f"{name}-{moment}")
                after = takes * (moment + 0.5) / options.moments
                said = interrupted(folder, words, after, options.pause)
                wrong = wrong_in(folder, said)
                number, failures = number + 1, failures + bool(wrong)
                last = (said.text.strip().splitlines() or [""])[-1]
                table.add_row(
                    name, f"{after:.1f} s", str(said.code), escape("; ".join(wrong)), escape(last[:160])
                )
                print(name, f"{after:.1f}", said.code, wrong, last[:200], flush=True)
                if wrong:
                    print(said.text[-1500:], flush=True)
    Console(width=150).print(table)
    print(f"{number - failures} of {number} runs ended as they should")
    return int(failures > 0)


def prepared(folder: Path) -> Path:
    """A folder with the config of a run."""
    write_config(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
