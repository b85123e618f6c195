"""Batches made from lengths: every sample once, none too full, and nearly as few as can be."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.batch.batch_words import padding
from lightning_vlm.data.batch.lengths import Lengths
from lightning_vlm.data.batch.packing import Budget, Units, alike, packed, padded, samples_in


def lengths_of(tokens, patches=None):
    tokens = np.array(tokens, np.int32)
    return Lengths(tokens, np.zeros_like(tokens) if patches is None else np.array(patches, np.int32))


def spread(size, seed=0, shortest=128, longest=2048):
    """Lengths that are spread evenly over their logarithms, some with pictures."""
    rng = np.random.default_rng(seed)
    tokens = np.exp(rng.uniform(np.log(shortest), np.log(longest), size)).astype(np.int32)
    pictures = (tokens * rng.uniform(0, 4, size) * (rng.random(size) < 0.7)).astype(np.int32)
    return Lengths(tokens, pictures), rng.permutation(size)


def loads(units, lengths):
    """Tokens with and without padding, and patches, of each batch."""
    for number in range(len(units)):
        members = units[number]
        tokens = lengths.tokens[members]
        yield (tokens > 0).sum() * tokens.max(), tokens.sum(), lengths.patches[members].sum()


SAMPLES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(SAMPLES, st.integers(1, 50), st.booleans(), st.randoms(use_true_random=False))
def test_every_sample_comes_once_and_no_batch_is_too_full(samples, window, counts_patches, chance):
    samples = [(tokens, patches if tokens else 0) for tokens, patches in samples]
    lengths = lengths_of(*zip(*samples, strict=True))
    order = list(range(len(samples)))
    chance.shuffle(order)
    budget = Budget(max(int(lengths.tokens.max()), 40), 30 if counts_patches else None)
    for make in (packed, padded):
        units = make(lengths, np.array(order), budget, window)
        assert sorted(units.members.tolist()) == list(range(len(samples)))
        for with_padding, tokens, patches in loads(units, lengths):
            assert (tokens if make is packed else with_padding) <= budget.tokens
            assert budget.patches is None or patches <= budget.patches
        assert all(units[number] for number in range(len(units)))
        assert np.array_equal(make(lengths, np.array(order), budget, window).members, units.members)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.integers(1, 9), st.integers(1, 50))
def test_alike_batches_have_all_samples_and_only_the_last_one_may_be_small(samples, batch_size, window):
    lengths = lengths_of(*zip(*samples, strict=True))
    units = alike(lengths, np.arange(len(samples))[::-1], batch_size, window)
    assert sorted(units.members.tolist()) == list(range(len(samples)))
    sizes = [len(units[number]) for number in range(len(units))]
    assert len(units) == math.ceil(len(samples) / batch_size)
    assert set(sizes[:-1]) <= {batch_size}


@pytest.mark.parametrize("most", [2048, 8192, 32768])
@pytest.mark.parametrize("patches", [None, 3])
def test_rows_are_nearly_as_few_as_can_be(most, patches):
    """Against the bound that no packing can beat: what there is over what a row holds."""
    lengths, order = spread(10_000)
    budget = Budget(most, patches and patches * most)
    rows = len(packed(lengths, order, budget))
    bound = math.ceil(lengths.tokens.sum() / most)
    assert bound <= rows <= 1.015 * bound
    if patches is None:
        in_order = 1  # rows filled one after the other, without looking for what fits
        left = most
        for length in lengths.tokens[order].tolist():
            if length > left:
                in_order += 1
                left = most
            left -= length
        assert rows < in_order


def test_pictures_can_be_what_rows_are_full_of():
    lengths, order = spread(5_000)
    budget = Budget(8192, 8192)
    rows = len(packed(lengths, order, budget))
    assert rows <= 1.02 * math.ceil(lengths.patches.sum() / 8192)


def test_a_hundred_thousand_samples_take_seconds():
    lengths, order = spread(100_000)
    start = time.process_time()
    packed(lengths, order, Budget(8192, 3 * 8192))
    padded(lengths, order, Budget(8192, 3 * 8192))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("most", [4096, 65536])
def test_samples_of_similar_length_need_little_padding(most):
    lengths, order = spread(20_000)
    assert padding(lengths, Units.of_size(order, 8)) > 0.4
    assert padding(lengths, alike(lengths, order, 8)) < 0.02
    assert padding(lengths, padded(lengths, order, Budget(most))) < 0.15


def test_batches_filled_by_tokens_hold_what_fits():
    """Two of the long ones, four of the short ones."""
    units = padded(lengths_of([10, 20, 20, 10, 10, 10]), np.arange(6), Budget(40))
    assert [sorted(units[number]) for number in range(len(units))] == [[1, 2], [0, 3, 4, 5]]


def test_a_batch_may_have_all_the_patches_of_its_budget():
    assert len(padded(lengths_of([10, 10], [5, 5]), np.arange(2), Budget(40, 10))) == 1
    assert len(padded(lengths_of([10, 10], [5, 6]), np.arange(2), Budget(40, 10))) == 2


def test_the_fullest_row_with_room_is_taken():
    """3 goes behind 7, where nothing is left then, and not behind 6."""
    units = packed(lengths_of([1, 3, 6, 7]), np.arange(4), Budget(10))
    assert sorted(sorted(units[number]) for number in range(len(units))) == [[0, 2], [1, 3]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=60))
def test_rows_are_those_of_best_fit_decreasing_searched_row_by_row(samples):
    """Samples in order of the greater of their shares, each into the fullest row with room for both."""
    needs, room = np.array(samples), np.array([40, 30])
    shares = needs / room
    scarce = int(np.argmax(shares.sum(0)))
    rows = []
    for place in sorted(range(len(samples)), key=lambda place: -shares[place].max()):
        left = [room - needs[row].sum(0) for row in rows]
        fitting = [(at[scarce], number) for number, at in enumerate(left) if (needs[place] <= at).all()]
        if fitting:
            rows[min(fitting)[1]].append(place)
        else:
            rows.append([place])
    units = packed(lengths_of(*zip(*samples, strict=True)), np.arange(len(samples)), Budget(40, 30))
    assert [units[number] for number in range(len(units))] == rows


def test_the_row_that_waits_is_the_emptiest_in_pictures_too():
    """Of a row with 6 tokens and 1 patch, and one with 2 and all 10, the first takes what comes next."""
    units = packed(lengths_of([6, 2, 4], [1, 10, 9]), np.arange(3), Budget(10, 10), window=2)
    assert sorted(sorted(units[number]) for number in range(len(units))) == [[0, 2], [1]]


def test_about_how_many_samples_a_batch_has():
    assert samples_in(Budget(100), lengths_of([30, 50])) == 2
    assert samples_in(Budget(8), lengths_of([1])) == 8
    assert samples_in(Budget(8), lengths_of([0, 0])) == 16


def test_what_is_left_of_a_window_waits_for_the_next():
    """Windows of 4 × 3 tokens would each leave a row of 10 with 9 and one with 3."""
    units = packed(lengths_of([3] * 12), np.arange(12), Budget(9), window=4)
    assert [len(units[number]) for number in range(len(units))] == [3, 3, 3, 3]


def test_samples_that_cannot_be_used_are_spread_over_batches():
    tokens = [0, 10, 0, 10, 0, 0, 10, 0]
    for make in (packed, padded):
        units = make(lengths_of(tokens), np.arange(8), Budget(10))
        counts = [sum(tokens[member] == 0 for member in units[number]) for number in range(len(units))]
        assert sorted(counts) == [1, 2, 2]
        alone = make(lengths_of([0, 0, 0]), np.arange(3), Budget(10))
        assert [alone[number] for number in range(len(alone))] == [[0, 1, 2]]


def test_another_order_has_the_same_batches():
    units = Units.of_lists([[3, 1], [2], [0, 4, 5]])
    turned = units.in_order(np.array([2, 0, 1]))
    assert [turned[number] for number in range(3)] == [[0, 4, 5], [3, 1], [2]]
    assert [turned.samples_before(number) for number in range(4)] == [0, 3, 5, 6]
