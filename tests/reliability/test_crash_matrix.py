"""A small piece of `python -m tools.reliability.crash_matrix`; and that it would notice."""

import pytest
import torch

from lightning_vlm.callbacks.answer_progress import Progress, Step
from tools.reliability import answering
from tools.reliability.crash_matrix import ANY, TORN, Matrix
from tools.reliability.equal_ends import differences, end_of
from tools.reliability.full_run import Case


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    torch.set_num_threads(1)
    return Matrix(tmp_path_factory.mktemp("crashes") / "runs", [Case("lora", 1)], seed=4)


@pytest.mark.parametrize("moment", [ANY, TORN, "checkpoint", "rank change", "stage switch"])
def test_killed_and_gone_on(matrix, moment):
    (case,) = matrix.cases
    outcome = matrix.kill(case, moment, number=matrix.moments(case).index(moment))
    assert outcome.wrong == ()
    assert outcome.killed >= (moment != ANY)  # which may come behind the end


def test_what_isnt_equal_is_found(matrix):
    (case,) = matrix.cases
    end = end_of(matrix.folder_of(case))
    weights = next(name for name in end if name.startswith("/state_dict/"))
    logged = "report/val/loss"
    other = {**end, weights: end[weights] + 1e-7, logged: [*end[logged][:-1], 0.5]}
    assert differences(other, end) == [weights, logged]


def test_answers_go_on(matrix):
    (case,) = matrix.cases
    modules = {case: matrix.whole[case].module}
    ((_, _, killed, wrong),) = answering.kills(matrix.folder, modules, 1, seed=0)
    assert killed
    assert wrong == ()


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
