"""Kills runs of `predict`, lets the same command go on, and compares the files of answers byte for byte."""

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything

from lightning_vlm import AnswerWriter, VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tools.reliability.equal_ends import leftovers
from tools.reliability.full_run import Case, quiet
from tools.reliability.killed_runs import run
from tools.reliability.moments import PREDICT, Line, Lines, die, draw_line, watched

MOMENT = "predict"


def answer(case: Case, module: Any, folder: Path) -> None:
    """Answer some questions, behind those that were answered already."""
    quiet()
    seed_everything(1, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=case.ranks,
        strategy="ddp" if case.ranks > 1 else "auto",
        logger=False,
        callbacks=[AnswerWriter(str(folder / "answers.jsonl"), show=0, resume=True)],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = VLMDataModule(predict=Drawn("test", size=8 * case.ranks), batch_size=2)
    trainer.predict(module, data, return_predictions=False)


def kills(
    folder: Path, modules: dict[Case, Any], count: int, seed: int
) -> Iterator[tuple[Case, str, int, tuple[str, ...]]]:
    """Kill runs of `predict`.

    Args:
        folder: Where they write.
        modules: What answers in each run.
        count: How many kills.
        seed: Of what is left to chance.

    Yields:
        The run, the moment, how often it was killed, and what is wrong.
    """
    chance = random.Random(seed)
    cases = list(modules)
    whole = {
        case: _uninterrupted(case, modules[case], folder / f"answers-{case.method}-{case.ranks}")
        for case in cases[:count]
    }
    for number in range(count):
        case = cases[number % len(cases)]
        expected, lines = whole[case]
        place = folder / f"predict-{number}"
        wrong: list[str] = []
        killed = 0
        for _ in range(chance.choice([1, 1, 2])):
            victim = chance.randrange(case.ranks)
            at = draw_line(lines[victim], chance)
            killed += _killed(case, modules[case], place, victim, at, chance.random() < 0.5)
        ended = run(lambda rank, pids: answer(case, modules[case], place), case.ranks, place / "ranks")  # noqa: B023
        if any(ended.codes):
            wrong.append(f"the run that goes on failed: {ended.codes}")
        elif (place / "answers.jsonl").read_bytes() != expected:
            wrong.append("other answers")
        wrong += [f"{file.name} is left" for file in place.glob(".*.progress")]
        wrong += [f"{name} is left" for name in leftovers(place)]
        if not wrong:
            shutil.rmtree(place)
        yield case, MOMENT, killed, tuple(wrong)


def _uninterrupted(case: Case, module: Any, folder: Path) -> tuple[bytes, list[list[int]]]:
    def body(rank: int, pids: Sequence[int]) -> list[int]:
        lines = Lines(MOMENT)
        with watched(PREDICT, {MOMENT: lines}):
            answer(case, module, folder)
        return lines.calls

    ended = run(body, case.ranks, folder / "ranks")
    return (folder / "answers.jsonl").read_bytes(), list(ended.results)


def _killed(case: Case, module: Any, folder: Path, victim: int, at: Line, takes_all: bool) -> bool:
    def body(rank: int, pids: Sequence[int]) -> None:
        others = [pid for pid in pids if pid != pids[rank]] if takes_all else []
        lines = Lines(MOMENT, at if rank == victim else Line(-1, 0), lambda: die(others))
        with watched(PREDICT, {MOMENT: lines}):
            answer(case, module, folder)

    return run(body, case.ranks, folder / "ranks").was_killed
