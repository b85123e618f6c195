"""A small piece of `python -m tools.reliability.crash_matrix`; and that it would notice."""

import json
import subprocess
import sys

import pytest

from lightning_vlm.callbacks.answer_progress import Progress, Step
from tools.reliability.equal_ends import differences, end_of


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """What the command printed, and the folder in which it worked.

    It gets an interpreter of its own: the process that runs the tests has threads, which no fork takes along.
    """
    folder = tmp_path_factory.mktemp("crashes") / "runs"
    given = ["--kills", "3", "--seed", "4", "--methods", "lora", "--ranks", "1", "--out", str(folder)]
    command = [sys.executable, "-m", "tools.reliability.crash_matrix", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder


def test_killed_and_gone_on(matrix):
    printed, folder = matrix
    outcomes = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert len({moment for _, moment, *_ in outcomes}) == 3
    assert all(killed for _, moment, killed, _ in outcomes if moment != "any time")  # which may be the end
    assert "0 went wrong" in printed


def test_what_isnt_equal_is_found(matrix):
    _, folder = matrix
    end = end_of(folder / "whole-lora-1")
    weights = next(name for name in end if name.startswith("/state_dict/"))
    logged = "report/val/loss"
    other = {**end, weights: end[weights] + 1e-7, logged: [*end[logged][:-1], 0.5]}
    assert differences(other, end) == [weights, logged]


def test_progress_that_is_begun_again_is_never_lost(tmp_path, monkeypatch):
    """Killed while the steps from before are written, a run still knows them."""
    steps = [Step((2,), (40,), (0, 1), (), {}), Step((2,), (80,), (2, 3), (), {})]
    progress = Progress(tmp_path / "answers.jsonl")
    progress.begin({"seed": 1}, steps)
    progress.close()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        Progress(tmp_path / "answers.jsonl").begin({"seed": 1}, steps)
    _, found = Progress(tmp_path / "answers.jsonl").read()
    assert [step.sizes for step in found] == [(40,), (80,)]
