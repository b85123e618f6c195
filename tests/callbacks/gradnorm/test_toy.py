"""The toy of GradNorm's paper, smaller: what it is for is measured, not only computed."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def toy():
    """The benchmark, which is no package."""
    file = Path(__file__).parents[3] / "benchmarks/gradnorm_toy.py"
    spec = importlib.util.spec_from_file_location("gradnorm_toy", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tasks_that_are_small_learn_too(toy):
    def run(contender):
        problem = toy.Problem(tasks=4, wide=20, out=10)
        return toy.run(contender, problem, steps=300, lr=3e-3, seed=0, batch=50)

    equal = run("equal")
    assert equal.weights.tolist() == [1.0] * 4
    for contender in ("GradNorm", "GradNorm, paper's solver"):
        balanced = run(contender)
        assert balanced.shares.mean() < 0.95 * equal.shares.mean()
        assert balanced.shares[0] < 0.9 * equal.shares[0]
        assert (balanced.weights.diff() < 0).all(), "the larger σ, the smaller the weight"
