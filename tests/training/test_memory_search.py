"""The largest batch, found from measured ones: against formulas of what a step takes and a limit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.batch.lengths import Lengths, SampleLength
from lightning_vlm.training.memory.search import ROUND, UNLIMITED, Point, Samples, Search, fit_cost


def samples_of(pairs, is_padded=False):
    tokens, patches = np.array(pairs, np.int32).T
    return Samples(Lengths(tokens, patches), np.arange(len(pairs)), is_padded)


class Machine:
    """A step takes what a formula says, and fails above a limit."""

    def __init__(self, samples, limit, fixed=0, token=1.0, patch=0.0, square=0.0):
        self.samples = samples
        self.limit = limit
        self.parts = (fixed, token, patch, square)
        self.steps = 0

    def formula(self, size):
        fixed, token, patch, square = self.parts
        return int(fixed + token * size.tokens + patch * size.patches + square * size.tokens**2)

    def __call__(self, batch):
        self.steps += 1
        size = self.samples.size(batch)
        needed = self.formula(size)
        if needed > self.limit:
            raise torch.OutOfMemoryError
        return Point(size, needed)


def search(samples, machine, cap=10**7, patches=None):
    return Search(machine, samples, machine.limit * 9 // 10, cap, patches).run()


def test_points_give_the_line():
    points = [Point(SampleLength(100, 40), 1000), Point(SampleLength(300, 120), 2000)]
    assert fit_cost(points).of(SampleLength(1000, 400)) == pytest.approx(5500)
    points.append(Point(SampleLength(300, 0), 1400))
    assert fit_cost(points) == pytest.approx((500, 3, 5))


def test_no_measured_batch_is_estimated_at_less():
    points = [Point(SampleLength(n, 0), n * n) for n in (10, 20, 40)]
    cost = fit_cost(points)
    assert all(cost.of(point.size) >= point.bytes for point in points)


TEXT = [(length, 0) for length in (30, 90, 200, 700, 1500)]
PICTURES = [(120, 400), (300, 256), (800, 1024), (90, 0), (2000, 0), (60, 200)]


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("pairs", [TEXT, PICTURES], ids=["text", "pictures"])
@pytest.mark.parametrize("fixed", [0, 5e8])
def test_a_linear_machine_is_filled(pairs, fixed, is_padded):
    samples = samples_of(pairs, is_padded)
    machine = Machine(samples, limit=10**9, fixed=fixed, token=20_000, patch=3_000)
    found = search(samples, machine)
    per_token = 20_000 + 3_000 * samples.patches_per_token
    expected = (9 * 10**8 - fixed) / per_token
    assert found.size.tokens == pytest.approx(expected // ROUND * ROUND, abs=ROUND)
    patches = 0 if found.size.patches == UNLIMITED else found.size.patches
    assert machine.formula(SampleLength(found.size.tokens, patches)) <= 9e8
    assert found.bytes > 0.8 * 9e8  # the batch that was verified is nearly as large as may be
    assert not found.is_capped
    assert machine.steps == found.steps <= 14


def test_patches_that_are_given_are_kept():
    samples = samples_of(PICTURES)
    machine = Machine(samples, limit=10**9, token=20_000, patch=3_000)
    found = search(samples, machine, patches=20_000)
    assert found.size == ((9 * 10**8 - 3_000 * 20_000) // 20_000 // ROUND * ROUND, 20_000)


def test_a_picture_that_is_large_for_the_average_fits():
    """Its patches, not the average of the data, are what a batch has to hold."""
    samples = samples_of([(1000, 0)] * 99 + [(100, 8000)])
    machine = Machine(samples, limit=10**9, token=20_000, patch=60_000)
    found = search(samples, machine)
    assert found.size.patches >= 8000
    assert found.size.tokens >= 1000
    assert machine.formula(found.size) <= 9e8


@pytest.mark.parametrize("patch", [100_000, 3_000])
def test_a_cap_stops_the_tokens_and_leaves_the_rest_to_patches(patch):
    samples = samples_of(PICTURES)
    machine = Machine(samples, limit=10**9, token=20_000, patch=patch)
    found = search(samples, machine, cap=4096)
    assert found.size.tokens == 4096
    assert found.is_capped
    left = (9 * 10**8 - 20_000 * 4096) // patch
    if patch == 100_000:
        assert found.size.patches == pytest.approx(left // ROUND * ROUND, abs=ROUND)
    else:  # no batch of 4,096 tokens has as many
        assert found.size.patches == UNLIMITED


@pytest.mark.parametrize("pairs", [TEXT, PICTURES], ids=["text", "pictures"])
def test_the_longest_sample_may_be_all_that_fits(pairs):
    samples = samples_of(pairs)
    longest = samples.longest
    needed = 20_000 * longest.tokens + 3_000 * longest.patches
    tight = Machine(samples, limit=int(needed * 1.15), token=20_000, patch=3_000)
    found = search(samples, tight)
    assert found.size.tokens == pytest.approx(longest.tokens, abs=ROUND)
    too_tight = Machine(samples, limit=20_000 * longest.tokens - 1, token=20_000, patch=3_000)
    assert search(samples, too_tight) is None
    in_the_margin = Machine(samples, limit=int(20_000 * longest.tokens * 1.05), token=20_000)
    assert search(samples, in_the_margin) is None


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(20, 3000), st.integers(0, 4000)), min_size=1, max_size=30),
    is_padded=st.booleans(),
    limit=st.integers(10**6, 10**10),
    fixed=st.integers(0, 10**8),
    token=st.integers(0, 100_000),
    patch=st.integers(0, 50_000),
    square=st.sampled_from([0.0, 0.1, 3.0]),
)
def test_what_is_found_fits_whatever_the_machine(pairs, is_padded, limit, fixed, token, patch, square):
    samples = samples_of(pairs, is_padded)
    machine = Machine(samples, limit, fixed, token, patch, square)
    found = search(samples, machine, cap=200_000)
    if found is None:
        # Not even a batch that is about as large as the largest samples fits.
        assert machine.formula(samples.longest) > limit * 0.8
        return
    batch = samples.fill(found.size)
    assert machine.formula(samples.size(batch)) <= limit * 9 // 10
    assert found.size.tokens >= samples.longest.tokens
    assert found.size.patches >= samples.longest.patches
    assert found.steps <= 40
