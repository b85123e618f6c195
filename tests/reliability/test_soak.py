"""Slopes of a long run, on series whose slope is known."""

import numpy as np

from tools.reliability.soak import MOST, SPAN, Slope, slope_of, verdict


def test_the_interval_holds_the_slope_of_correlated_noise():
    """Of 200 series whose noise remembers 10 values, about 95% have the true slope in their interval."""
    chance = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        noise = np.zeros(400)
        for place, shock in enumerate(chance.normal(size=400)):
            noise[place] = 0.9 * noise[place - 1] + shock
        values = 100 + noise + 0.01 * np.arange(400)
        slope = slope_of(range(400), values)
        inside += slope.lower <= 100 * SPAN * 0.01 / np.median(values) <= slope.upper
    assert 175 <= inside <= 198


def test_busy_moments_do_not_move_the_slope():
    """A fifth of the values is ten times as large, and some are more so."""
    chance = np.random.default_rng(1)
    values = 50 + chance.normal(size=400)
    busy = np.where(np.arange(400) % 50 < 10, 10 * values, values)
    busy[300:320] *= 20
    slope = slope_of(range(0, 400_000, 1000), busy)
    assert slope.lower < 0 < slope.upper
    assert abs(slope.estimate) < 0.2


def test_verdicts():
    (name, most), *_ = MOST.items()
    assert verdict(name, Slope(2 * most, most, 3 * most)) == "grows"
    assert verdict(name, Slope(2 * most, -1.0, 3 * most)) == "not certain", "it may be chance"
    assert verdict(name, Slope(most / 2, most / 3, 2 * most)) == "not certain", "it may be too much"
    assert verdict(name, Slope(most / 2, most / 3, most)) == "flat", "it doesn't matter"
