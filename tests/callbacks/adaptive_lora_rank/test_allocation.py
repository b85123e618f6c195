"""The budget is spent exactly, within bounds, by score; against brute force and the continuous optimum."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.adaptive_lora_rank.allocation import allocate_ranks


@st.composite
def cases(draw):
    step = draw(st.integers(1, 8))
    least = draw(st.integers(0, 3))
    most = least + draw(st.integers(1, 12))
    amount = st.one_of(st.just(0.0), st.floats(1e-9, 1e9))
    scores = draw(st.dictionaries(st.text("abc.", min_size=1, max_size=6), amount, min_size=1, max_size=12))
    budget = draw(st.integers(least * step * len(scores), (most + 2) * step * len(scores)))
    return scores, budget, {"min_rank": least * step, "max_rank": most * step, "multiple_of": step}


@given(cases())
@settings(deadline=None, max_examples=300)
def test_exact_bounded_monotone_and_the_same_in_any_order(case):
    scores, budget, bounds = case
    ranks = allocate_ranks(scores, budget, **bounds)
    step = bounds["multiple_of"]
    assert sum(ranks.values()) == min(budget // step * step, bounds["max_rank"] * len(scores))
    assert all(bounds["min_rank"] <= rank <= bounds["max_rank"] for rank in ranks.values())
    assert all(rank % step == 0 for rank in ranks.values())
    for name, other in itertools.permutations(scores, 2):
        assert scores[name] <= scores[other] or ranks[name] >= ranks[other]
    assert allocate_ranks(dict(reversed(scores.items())), budget, **bounds) == ranks


@given(cases(), st.data())
@settings(deadline=None, max_examples=200)
def test_costs_are_kept_and_no_step_more_would_fit(case, data):
    scores, _, bounds = case
    costs = {name: data.draw(st.integers(1, 50)) for name in scores}
    floor = bounds["min_rank"] * sum(costs.values())
    budget = floor + data.draw(st.integers(0, 5000))
    ranks = allocate_ranks(scores, budget, **bounds, costs=costs)
    left = budget - sum(costs[name] * rank for name, rank in ranks.items())
    assert left >= 0
    for name, rank in ranks.items():
        assert rank == bounds["max_rank"] or bounds["multiple_of"] * costs[name] > left


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4), st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_within_one_step_of_the_best_of_all_allocations(scores, extra):
    budget, most = len(scores) + extra, 6
    ranks = allocate_ranks(
        {str(i): s for i, s in enumerate(scores)}, budget, min_rank=1, max_rank=most, multiple_of=1
    )
    every = itertools.product(range(1, most + 1), repeat=len(scores))
    spent = min(budget, most * len(scores))
    value = {
        r: sum(s * math.log(x) for s, x in zip(scores, r, strict=True)) for r in every if sum(r) == spent
    }
    best = max(value, key=value.__getitem__)
    assert all(abs(rank - other) <= 1 for rank, other in zip(ranks.values(), best, strict=True))


@pytest.mark.parametrize("scores", [[1.0] * 224, [1.0] + [1e-9] * 27, [1.0] * 5])
def test_what_the_seed_overspends_or_underspends(scores):
    named = {f"{i:03}": score for i, score in enumerate(scores)}
    budget = max(512, 4 * len(named)) if len(named) > 28 else 512
    ranks = allocate_ranks(named, budget, min_rank=4, max_rank=512, multiple_of=4)
    assert sum(ranks.values()) == budget


def test_all_zero_scores_share_alike():
    ranks = allocate_ranks(dict.fromkeys("abcd", 0.0), 32, min_rank=0, max_rank=16, multiple_of=4)
    assert set(ranks.values()) == {8}


@pytest.mark.parametrize(
    ("scores", "budget", "bounds", "says"),
    [
        ({"a": 1.0, "b": 1.0}, 7, (4, 8, 4), "found 7, but min_rank 4 for 2 modules costs 8"),
        ({"a": math.nan}, 8, (4, 8, 4), "found nan for a"),
        ({"a": -1.0}, 8, (4, 8, 4), "found -1.0 for a"),
        ({"a": 1.0}, 8, (8, 4, 4), "found 8 and 4"),
        ({"a": 1.0}, 8, (3, 8, 4), "found 3 and 8"),
        ({"a": 1.0}, 8, (4, 8, 0), "multiple_of: found 0"),
    ],
)
def test_errors(scores, budget, bounds, says):
    least, most, step = bounds
    with pytest.raises(MisconfigurationException, match=says):
        allocate_ranks(scores, budget, min_rank=least, max_rank=most, multiple_of=step)
