"""A small piece of `python -m tools.reliability.numeric_faults`; and that it would notice."""

import pytest
from lightning_vlm_callbacks import NonFiniteGuard

from tests.support import tiny
from tools.reliability.faulty_runs import Case
from tools.reliability.numeric_faults import Matrix, all_cases
from tools.reliability.planted_faults import Fault, all_faults


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    return Matrix(tiny.build("llava", tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    "case",
    [
        Case(Fault("vision attention", "forward", "-inf"), accumulate=2),
        Case(Fault("on_after_backward", "hook", "nan"), accumulate=2, at=1),
        # The loss is finite, and DDP would wait for weights that it doesn't reach.
        Case(Fault("projector", "backward", "+inf"), ranks=2),
    ],
    ids=str,
)
def test_named_survived_and_never_seen(matrix, case):
    assert matrix.judge(case) == ([], [], [])


def test_a_guard_that_steps_with_zeros_is_found(matrix, monkeypatch):
    """Momentum and decay then act."""

    def zeros(self, trainer, optimizer):
        optimizer.zero_grad(set_to_none=False)

    monkeypatch.setattr(NonFiniteGuard, "_skip_update", zeros)
    case = Case(Fault("pixels", "hook", "nan"), accumulate=2)
    verdict = matrix.judge(case)
    assert verdict.named == verdict.survived == []
    assert any("weights" in sentence for sentence in verdict.equal)


def test_each_fault_comes_once_before_any_comes_again():
    faults = all_faults()
    assert {case.fault for case in all_cases(seed=3)[: len(faults)]} == set(faults)
