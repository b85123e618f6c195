"""Intervals against SciPy's, and against those of normal distributions in closed form."""

import numpy as np
import pytest
from scipy import stats

from lightning_vlm.compare import bootstrap
from lightning_vlm.compare.bootstrap import Interval, add_up, exact_edge, values_of
from lightning_vlm.compare.bootstrap import interval as interval_of


def interval(sums, value, **options):
    return interval_of(values_of(sums, value, **options))


def ratio(sums):
    return sums[:, 0] / sums[:, 1]


def gap(sums):
    return (sums[:, 0] - sums[:, 1]) / sums[:, 2]


def means_of(values):
    """The columns of a mean."""
    return np.stack([values, np.ones_like(values)], 1)


@pytest.mark.parametrize("count", [12, 50])
@pytest.mark.parametrize("kind", ["normal", "exponential", "binary"])
def test_the_interval_of_a_mean_is_scipys(kind, count):
    random = np.random.default_rng(5)
    values = {
        "normal": random.normal(size=count),
        "exponential": random.exponential(size=count),
        "binary": (random.random(count) < 0.3).astype(float),
    }[kind]
    found = interval(add_up(means_of(values), range(count), 999, seed=3), ratio)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=999, rng=np.random.default_rng(3), method="BCa"
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), rel=1e-9)


def test_the_interval_of_pairs_is_scipys():
    random = np.random.default_rng(1)
    before = random.normal(size=40)
    after = before + random.normal(0.2, 0.5, 40)
    rows = np.stack([after, before, np.ones(40)], 1)
    found = interval(add_up(rows, range(40), 999, seed=7), gap)

    def difference(one, other, axis=-1):
        return one.mean(axis) - other.mean(axis)

    expected = stats.bootstrap(
        (after, before), difference, n_resamples=999, paired=True, rng=np.random.default_rng(7), method="BCa"
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), rel=1e-9)


def test_the_interval_of_normal_values_is_the_one_in_closed_form():
    values = np.random.default_rng(0).normal(3.0, 2.0, 500)
    found = interval(add_up(means_of(values), range(500), 20_000), ratio)
    half = stats.norm.ppf(0.975) * values.std(ddof=1) / 500**0.5
    expected = (values.mean() - half, values.mean() + half)
    assert found == pytest.approx(expected, abs=0.05 * half)


def test_pairs_are_narrower_than_two_alone():
    """The samples differ much, the models little."""
    random = np.random.default_rng(2)
    before = random.normal(size=300) * 5
    after = before + random.normal(0.1, 0.2, 300)
    paired = interval(add_up(np.stack([after, before, np.ones(300)], 1), range(300)), gap)
    alone = interval(add_up(means_of(after), range(300)), ratio)
    assert paired.excludes_zero
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_samples_that_are_drawn_together_count_as_one():
    """Each sample four times, in groups: the interval is that of the samples once."""
    values = np.random.default_rng(4).normal(size=100)
    once = interval(add_up(means_of(values), range(100)), ratio)
    four = np.repeat(values, 4)
    groups = np.repeat(np.arange(100), 4)
    assert interval(add_up(means_of(four), groups.tolist()), ratio) == pytest.approx(once)
    apart = interval(add_up(means_of(four), range(400)), ratio)
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_acceleration_from_parts_of_the_samples_is_near(monkeypatch):
    values = np.random.default_rng(6).exponential(size=1000)
    sums = add_up(means_of(values), range(1000))
    monkeypatch.setattr(bootstrap, "FEWER_RESAMPLES", len(sums.draws))
    exact, fast = interval(sums, ratio), interval(sums, ratio, is_slow=True)
    assert fast == pytest.approx(exact, abs=0.05 * (exact.high - exact.low))


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    rows = means_of(np.random.default_rng(0).normal(size=30))
    whole = add_up(rows, range(30), 100)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 1)
    np.testing.assert_array_equal(add_up(rows, range(30), 100).draws, whole.draws)


def test_what_has_no_spread_or_no_interval():
    same = add_up(means_of(np.full(10, 0.25)), range(10))
    assert interval(same, ratio) == (0.25, 0.25)
    nothing = add_up(np.zeros((5, 2)), range(5))
    with np.errstate(all="ignore"):
        assert interval(add_up(means_of(np.ones(1)), range(1)), ratio) is None
        assert interval(nothing, ratio) is None


@pytest.mark.parametrize("count", [1, 20, 300])
@pytest.mark.parametrize("is_top", [True, False])
def test_a_share_of_none_or_all_has_the_exact_interval(count, is_top):
    exact = stats.binomtest(count if is_top else 0, count).proportion_ci(0.95, "exact")
    assert exact_edge(count, is_top) == pytest.approx(Interval(exact.low, exact.high))
