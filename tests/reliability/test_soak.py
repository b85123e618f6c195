"""Slopes of a long run, on series whose slope is known."""

import numpy as np

from tools.reliability.soak import A_DAY, MOST, Slope, grows, slope_of


def test_the_interval_holds_the_slope_of_correlated_noise():
    """Of 200 series whose noise remembers 10 values, about 95% have the true slope in their interval."""
    chance = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        noise = np.zeros(400)
        for place, shock in enumerate(chance.normal(size=400)):
            noise[place] = 0.9 * noise[place - 1] + shock
        slope = slope_of(range(400), noise + 0.01 * np.arange(400))
        inside += slope.lower <= 0.01 <= slope.upper
    assert 175 <= inside <= 198


def test_what_grows():
    (name, most), *_ = MOST.items()
    assert grows(name, Slope(2 * most / A_DAY, most / A_DAY, 3 * most / A_DAY))
    assert not grows(name, Slope(2 * most / A_DAY, -1.0, 3 * most / A_DAY)), "it may be chance"
    assert not grows(name, Slope(most / 2 / A_DAY, most / 3 / A_DAY, most / A_DAY)), "it doesn't matter"
