"""Curves against other libraries: straight lines of NumPy, cosines and logistic functions of torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_vlm.curve import WAYS, Curve, Point

values = st.floats(-10, 10)
places = st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True).map(sorted)


@given(places, st.lists(values, min_size=6, max_size=6), st.floats(-1, 2))
def test_straight_lines_are_those_of_numpy(places, values, progress):
    points = [Point(at / 1000, value) for at, value in zip(places, values, strict=False)]
    expected = np.interp(progress, [point.at for point in points], [point.value for point in points])
    assert Curve(points)(progress) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5, 0.9, 1])
def test_ways_are_those_of_torch(share):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)
    assert Curve([Point(0, 1.0, "smooth"), Point(1, 0.0)])(share) == pytest.approx(
        cosine.eta_min + (1 - cosine.eta_min) * (1 + math.cos(math.pi * share)) / 2
    )
    logistic = torch.sigmoid(10 * (torch.tensor([0.0, share, 1.0], dtype=torch.float64) - 0.5))
    stretched = (logistic[1] - logistic[0]) / (logistic[2] - logistic[0])
    assert WAYS["inverse_sigmoid"](share) == pytest.approx(stretched.item(), abs=1e-12)


@pytest.mark.parametrize("way", WAYS)
@given(first=values, last=values)
def test_each_way_goes_from_its_point_to_the_next(way, first, last):
    curve = Curve([Point(0.2, first, way), Point(0.6, last)])
    assert curve(0.2) == curve(0) == curve(-1) == pytest.approx(first)
    assert curve(0.6) == curve(1) == curve(2) == last
    between = sorted([curve(0.3), curve(0.5)])
    low, high = sorted([first, last])
    assert low - 1e-9 <= between[0]
    assert between[1] <= high + 1e-9


def test_a_step_waits_for_its_point_and_a_tolerance_lets_it_come_before():
    points = [Point(0, 1.0, "steps"), Point(0.5, 2.0)]
    assert [Curve(points)(progress) for progress in (0, 0.4999, 0.5)] == [1, 1, 2]
    assert Curve(points, tolerance=1e-3)(0.4999) == 2


def test_of_several_points_at_one_place_the_last_one_counts():
    assert Curve([Point(0, 0.0), Point(0, 1.0), Point(1, 0.0)])(0) == 1
