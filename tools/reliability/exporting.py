"""Kills exports: what they leave must never pass for a whole folder, and the next export must not mind it."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_vlm.export import command
from tools.reliability.full_run import Case
from tools.reliability.killed_runs import run
from tools.reliability.moments import EXPORT, PROVED, Line, Lines, die, draw_line, watched


def export(checkpoint: Path, out: Path) -> None:
    """Export a checkpoint, proved on one sample."""
    command.run(["--ckpt_path", str(checkpoint), "--out", str(out), "--samples", "1"])


def kills(
    folder: Path, checkpoints: dict[Case, Path], count: int, seed: int
) -> Iterator[tuple[Case, str, int, tuple[str, ...]]]:
    """Kill exports while they write, and a few behind the proof.

    Args:
        folder: Where they write.
        checkpoints: What is exported of each run.
        count: How many kills.
        seed: Of what is left to chance.

    Yields:
        The run, the moment, how often it was killed, and what is wrong.
    """
    chance = random.Random(seed)
    cases = list(checkpoints)
    for case in cases[:count]:
        place = folder / f"exports-{case.method}"
        expected, lines = _uninterrupted(checkpoints[case], place)
        share = range(cases.index(case), count, len(cases))
        for number in share:
            is_last = number == share[-1]
            moments = PROVED if is_last else EXPORT
            (moment,) = moments
            out = place / f"out-{number}"
            at = draw_line(lines[moment], chance)
            killed = _killed(checkpoints[case], out, moments, at)
            wrong = [] if not out.exists() else _differs(out, expected)
            if is_last:  # what was left stands in the way of nothing
                ended = run(lambda rank, pids: export(checkpoints[case], place / "again"), 1, place / "ranks")  # noqa: B023
                wrong += (
                    ["the next export failed"] if any(ended.codes) else _differs(place / "again", expected)
                )
            wrong += [f"{one.name} is left" for one in place.glob(".again-*")]
            yield case, moment, killed, tuple(wrong)


def _files(folder: Path) -> dict[str, bytes]:
    """Everything but the card, which has the time."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "README.md"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _differs(out: Path, expected: dict[str, bytes]) -> list[str]:
    found = _files(out)
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    return [f"{out.name} is there, and its {name} isn't whole" for name in names]


def _uninterrupted(checkpoint: Path, folder: Path) -> tuple[dict[str, bytes], dict[str, list[int]]]:
    moments = {**EXPORT, **PROVED}

    def body(rank: int, pids: Sequence[int]) -> dict[str, list[int]]:
        lines = {moment: Lines(moment) for moment in moments}
        with watched(moments, lines):
            export(checkpoint, folder / "whole")
        return {name: one.calls for name, one in lines.items()}

    folder.mkdir()
    ended = run(body, 1, folder / "ranks")
    if any(ended.codes):
        raise RuntimeError(f"the uninterrupted export failed; {folder / 'ranks'} says why")
    return _files(folder / "whole"), ended.results[0]


def _killed(checkpoint: Path, out: Path, moments: dict[str, tuple[str, ...]], at: Line) -> int:
    (moment,) = moments

    def body(rank: int, pids: Sequence[int]) -> None:
        with watched(moments, {moment: Lines(moment, at, die)}):
            export(checkpoint, out)

    return int(run(body, 1, out.parent / "ranks").was_killed)
