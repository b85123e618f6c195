"""What is unusual about a norm, against numpy and by hand."""

import math

import numpy as np
import pytest
from lightning_vlm_callbacks.gradient_monitor.rules import Limits, RunningNorm, Watch, anomaly

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


def test_the_usual_norm_is_numpys():
    """Mean and variance of the first 25, then ZClip's equations; above the limit, the limit enters."""
    given = np.random.default_rng(0).lognormal(0, 0.4, 400)
    given[[3, 50, 51]] = math.nan, math.inf, math.nan
    given[[60, 200]] = 40, 1e6
    usual = RunningNorm()
    for norm in given:
        usual = usual.after(float(norm), max_z=4.0)
    finite = given[np.isfinite(given)]
    mean, variance = finite[:25].mean(), finite[:25].var()
    cut = 0
    for norm in finite[25:]:
        limit = mean + 4 * max(variance**0.5, 0.05 * mean)
        cut += norm > limit
        norm = min(norm, limit)
        mean = 0.97 * mean + 0.03 * norm
        variance = 0.97 * variance + 0.03 * (norm - mean) ** 2
    assert cut > 2
    assert usual == (len(finite), pytest.approx(mean, rel=1e-12), pytest.approx(variance, rel=1e-12))


def test_a_spike_is_soon_forgotten_and_a_lasting_rise_soon_usual():
    usual = RunningNorm(25, 1.0, 0.01)
    spiked = usual.after(1e9, max_z=6.0)
    assert spiked.mean == pytest.approx(1 + 0.03 * 0.6)
    assert spiked.limit(6.0) < 2
    steps = 0
    while usual.limit(6.0) < 10.0:
        usual, steps = usual.after(10.0, max_z=6.0), steps + 1
    assert 3 < steps < 20


def test_what_never_moved_is_not_judged_by_its_mean():
    usual = RunningNorm()
    for _ in range(30):
        usual = usual.after(0.0, max_z=6.0)
    assert usual.limit(6.0) == math.inf
    assert usual.after(1.0, max_z=6.0).mean == pytest.approx(0.03)
    assert RunningNorm(1000, 1.0, 0.0).limit(6.0) == pytest.approx(1.3)  # not 1.0: steady isn't fragile
    assert RunningNorm(24, 1.0, 0.01).limit(6.0) == math.inf
    assert RunningNorm(25, 1.0, 0.01).limit(None) == math.inf


@pytest.mark.parametrize(
    ("norm", "dead_for", "kind"),
    [
        (1.0, 0, None),
        (1.61, 0, "exploding"),
        (1.59, 0, None),
        (math.inf, 0, "nan"),
        (math.nan, 0, "nan"),
        (0.0, 9, None),
        (0.0, 10, "dead"),
        (None, 9, None),
        (None, 11, "dead"),
        (0.9e-7, 0, "vanishing"),
        (1.1e-7, 0, None),
    ],
)
def test_anomaly(norm, dead_for, kind):
    usual, limits = RunningNorm(25, 1.0, 0.01), Limits(100.0, 6.0)
    assert anomaly(norm, usual, dead_for, limits) == kind
    without_limits = None if kind == "exploding" else kind
    assert anomaly(norm, usual, dead_for, Limits(None, None)) == without_limits


def test_the_absolute_limit_needs_no_warm_up():
    limits = Limits(100.0, None)
    assert [anomaly(norm, RunningNorm(), 0, limits) for norm in (100.0, 100.1)] == [None, "exploding"]


def test_a_watch_reports_each_anomaly_of_a_group_once(dead_after):
    dead_after(3)
    watch = Watch(Limits(100.0, 6.0))
    norms = [
        {"a": 200.0, "b": None},
        {"a": math.nan, "b": 0.0},
        {"a": 300.0, "b": None},
        {"a": 1.0, "b": None},
    ]
    found = [watch.judge(step, one) for step, one in enumerate(norms)]
    assert [alarm for alarm, _ in found] == [True, True, True, False]
    assert [len(news) for _, news in found] == [1, 1, 1, 0]
    assert "dead in 'b': no gradient" in found[2][1][0]
    assert list(watch.counts()) == [
        "exploding in 'a' 2× (steps 0 to 2)",
        "nan in 'a' 1× (steps 1 to 1)",
        "dead in 'b' 2× (steps 2 to 3)",
    ]
    assert watch.judge(4, {"b": 1.0}) == (False, [])
    assert watch.judge(5, {"b": None}) == (False, [])  # it counts from one again
    assert watch.usual["b"].seen == 1
    assert watch.judge(6, {"b": 0.0}) == (False, [])
    assert watch.usual["b"].seen == 2  # a zero is a norm


def test_a_step_with_nan_is_usual_in_no_group():
    """A group whose own norm is finite by chance too: an overflow elsewhere has spoiled it."""
    watch = Watch(Limits(max_norm=None, max_z=6.0))
    watch.judge(0, {"a": 1.0, "b": 2.0})
    watch.judge(1, {"a": math.inf, "b": 1e30})
    assert {name: (usual.seen, usual.mean) for name, usual in watch.usual.items()} == {
        "a": (1, 1.0),
        "b": (1, 2.0),
    }
    other = Watch(watch.limits)
    other.load_state_dict(watch.state_dict())
    assert vars(other) == vars(watch)
    assert Watch(watch.limits, has_scaler=True).judge(0, {"a": math.inf}) == (False, [])
