"""Two runs in one folder at once, locks of killed runs, and workers that are killed."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from tools.reliability.fault_runs import (
    Verdict,
    end,
    is_short,
    judge,
    run,
    same,
    start,
    strike,
    weights,
    write_config,
)
from tools.reliability.full_disks import QUESTION

WITHIN = 60.0
"""Seconds within which a file must be there, or a message."""


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether something becomes so in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + WITHIN:
            return False
        time.sleep(0.02)
    return True


def two_fits(folder: Path, whole: Path) -> Verdict:
    """The second is refused in one line; the first isn't disturbed."""
    inside = folder / "inside"
    write_config(inside)
    first = start(inside, "fit", "--config", "run.yaml")
    wait_for((inside / "kept/latest.ckpt").exists)
    second = run(inside, "fit", "--config", "run.yaml")
    whole_first = end(first)
    return judge(
        second.error,
        the_second_is_refused=second.code == 2 and is_short(second.error) and "another run" in second.error,
        no_model_was_loaded="trainable" not in second.text,
        the_first_is_whole=whole_first.code == 0 and same(weights(inside), weights(whole)),
    )


def killed_lock(folder: Path, whole: Path) -> Verdict:
    """What a killed run has locked is free at once."""
    inside = folder / "inside"
    write_config(inside)
    first = start(inside, "fit", "--config", "run.yaml")
    wait_for((inside / "kept/latest.ckpt").exists)
    first.kill()
    was_locked = (inside / "kept/.run.lock").exists()
    again = run(inside, "fit", "--config", "run.yaml", "--ckpt_path", "last")
    return judge(
        again.error or "nothing; the run goes on",
        the_lock_was_left=was_locked,
        it_goes_on=again.code == 0 and same(weights(inside), weights(whole)),
    )


def two_predicts(folder: Path, whole: Path) -> Verdict:
    """Both answers are kept, and it is said where."""
    count = 400
    (folder / "questions.jsonl").write_text(QUESTION * count)
    words = ("predict", "--config", whole / "run.yaml", "--ckpt_path", whole / "kept/latest.ckpt")
    words += ("--data.predict", folder / "questions.jsonl", "--out", folder / "answers.jsonl")  # type: ignore[assignment]
    first = start(whole, *words)
    wait_for(lambda: (folder / "answers.jsonl").exists() and (folder / "answers.jsonl").stat().st_size > 0)
    second = run(whole, *words)
    ended = end(first)
    files = sorted(folder.glob("answers*.jsonl"))
    lines = [len(file.read_text().splitlines()) for file in files]
    said = second.warnings("another|earlier") or [second.error]
    refused = second.code == 2 and is_short(second.error)
    return judge(
        said[0],
        the_first_is_whole=ended.code == 0 and lines[-1] == count,
        the_second_is_refused_or_whole=refused or (second.code == 0 and lines == [count, count]),
        it_is_said=bool(said[0]),
    )


def fit_and_predict(folder: Path, whole: Path) -> Verdict:
    """A fit isn't disturbed by questions to its newest checkpoint."""
    inside = folder / "inside"
    write_config(inside)
    (inside / "questions.jsonl").write_text(QUESTION * 5)
    first = start(inside, "fit", "--config", "run.yaml")
    wait_for((inside / "kept/latest.ckpt").exists)
    words = ("predict", "--config", "run.yaml", "--data.predict", "questions.jsonl")
    second = run(inside, *words, "--ckpt_path", "kept/latest.ckpt")
    ended = end(first)
    return judge(
        second.error or "answers; nothing else",
        both_end=ended.code == second.code == 0,
        the_fit_is_whole=same(weights(inside), weights(whole)),
    )


def worker(folder: Path, whole: Path) -> Verdict:
    """A data worker that the kernel kills: a message within a minute, and the run goes on from its end."""
    inside = folder / "inside"
    write_config(inside, callbacks=[strike(3, "kill")], num_workers=2)
    began = time.monotonic()
    said = run(inside, "fit", "--config", "run.yaml")
    seconds = time.monotonic() - began
    write_config(inside, num_workers=2)
    again = run(inside, "fit", "--config", "run.yaml", "--ckpt_path", "last")
    return judge(
        said.error,
        it_says_what_to_do=is_short(said.error) and "worker" in said.error and "num_workers" in said.error,
        it_ends_within_a_minute=said.code not in (0, -signal.SIGKILL) and seconds < WITHIN,
        it_goes_on=again.code == 0 and same(weights(inside), weights(whole)),
    )


TOGETHER: dict[str, Callable[[Path, Path], Verdict]] = {
    "two runs: fit and fit": two_fits,
    "two runs: predict and predict": two_predicts,
    "two runs: fit and predict": fit_and_predict,
    "a lock of a killed run": killed_lock,
    "a data worker is killed": worker,
}
