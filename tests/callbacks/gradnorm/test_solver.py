"""The equations: as autograd has them through the norm of a gradient, and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_vlm_callbacks.gradnorm.solver import closed_form, paper, relative_rates, weight_gradient
from lightning_vlm_callbacks.task_weights import InitialLosses


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0, 2), st.integers(0, 9))
def test_the_gradient_of_the_papers_loss_needs_no_second_graph(norms, alpha, seed):
    """As autograd has it through the norm of a gradient, with create_graph."""
    torch.manual_seed(seed)
    tasks = len(norms)
    shared = torch.randn(5, dtype=torch.float64, requires_grad=True)
    losses = [scale * (torch.randn(5, dtype=torch.float64) * shared).sin().sum() for scale in norms]
    weights = torch.rand(tasks, dtype=torch.float64).add(0.1).requires_grad_()
    rates = torch.rand(tasks, dtype=torch.float64) + 0.5
    of_each = torch.stack(
        [
            torch.autograd.grad(weights[i] * loss, shared, create_graph=True)[0].norm()
            for i, loss in enumerate(losses)
        ]
    )
    target = (of_each.mean() * rates**alpha).detach()
    (expected,) = torch.autograd.grad((of_each - target).abs().sum(), weights)
    found = weight_gradient(weights.detach(), (of_each / weights).detach(), rates, alpha)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_rates_are_what_is_left_of_first_losses_over_their_mean():
    rates = relative_rates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0]), torch.tensor([True, True]))
    torch.testing.assert_close(rates, torch.tensor([2 / 3, 4 / 3]))


def test_a_task_that_has_its_share_stays():
    ones = torch.ones(2)
    assert weight_gradient(ones, 3 * ones, ones, 1.0).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.03, 30), st.floats(0.3, 3)), min_size=2, max_size=6), st.floats(0, 2))
def test_the_closed_form_is_where_every_norm_has_its_share(tasks, alpha):
    norms, rates = torch.tensor(tasks, dtype=torch.float64).T
    ones = torch.ones_like(norms)
    at_once = closed_form(ones, norms, rates, ones > 0, alpha, rate=1.0)
    share = at_once * norms / rates**alpha
    torch.testing.assert_close(share, share[:1].expand_as(share), rtol=1e-9, atol=0)
    assert at_once.sum().item() == pytest.approx(len(norms))
    torch.testing.assert_close(closed_form(at_once, norms, rates, ones > 0, alpha, 0.3), at_once)
    slowly = ones
    for _ in range(300):
        slowly = closed_form(slowly, norms, rates, ones > 0, alpha, rate=0.1)
    torch.testing.assert_close(slowly, at_once, rtol=1e-6, atol=0)
    if alpha == 0:
        torch.testing.assert_close((at_once * norms).std(), torch.zeros(()).double(), rtol=0, atol=1e-9)


def test_a_step_goes_a_share_of_the_way_in_logarithms():
    weights, norms, rates = torch.tensor([1.6, 0.4]), torch.tensor([4.0, 1.0]), torch.tensor([1.0, 4.0])
    aim = torch.tensor([0.25, 2.0])  # the root of each rate over its norm
    moved = torch.exp(0.7 * weights.log() + 0.3 * aim.log())
    found = closed_form(weights, norms, rates, norms > 0, alpha=0.5, rate=0.3)
    torch.testing.assert_close(found, 2 * moved / moved.sum())


def test_a_step_of_the_papers_by_hand():
    """Gradient descent in log w, where the slope of a task is w ∂/∂w, here in units of the mean norm 15."""
    weights, norms, ones = torch.tensor([1.5, 0.5]), torch.tensor([4.0, 48.0]), torch.ones(2)
    slopes = torch.tensor([-6.0 / 15, 1.0])  # that of the second, 24 / 15, is held at 1
    moved = weights * torch.exp(-0.3 * slopes)
    found = paper(weights, norms, ones, ones > 0, alpha=0.7, rate=0.3)
    torch.testing.assert_close(found, 2 * moved / moved.sum())


def test_a_step_of_the_papers_is_held_in_both_directions():
    """The first would have a slope of -1.5 in units of the mean norm 1: its norm should be 4 times that."""
    weights, norms, rates = torch.ones(2), torch.tensor([1.5, 0.5]), torch.tensor([4.0, 1.0])
    moved = torch.exp(-0.3 * torch.tensor([-1.0, -0.5]))
    found = paper(weights, norms, rates, weights > 0, alpha=1.0, rate=0.3)
    torch.testing.assert_close(found, 2 * moved / moved.sum())


def test_weights_stay_where_numbers_are_too_small_to_move_them():
    weights, tiny = torch.tensor([1.5, 0.5]), torch.full((2,), 1e-8)
    assert torch.equal(closed_form(weights, torch.full((2,), 1e38), tiny, tiny > 0, 1.5, 0.5), weights)


@pytest.mark.parametrize("solver", [closed_form, paper])
def test_no_weight_ends_at_0(solver):
    """From there it would never come back."""
    weights, ones = torch.ones(2), torch.ones(2)
    for _ in range(400):
        weights = solver(weights, torch.tensor([1.0, 1e12]), ones, ones > 0, 1.0, 0.5)
    assert weights[1] == pytest.approx(1e-6)
    for _ in range(400):
        weights = solver(weights, torch.tensor([1.0, 0.1]), ones, ones > 0, 1.0, 0.1)
    assert weights[1] > weights[0]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_papers_steps_end_where_the_closed_form_is(alpha):
    norms, rates = torch.tensor([0.3, 2.0, 40.0]), torch.tensor([0.5, 1.0, 1.5])
    ones = torch.ones(3)
    weights = ones
    for _ in range(4000):
        weights = paper(weights, norms, rates, ones > 0, alpha, rate=0.005)
    expected = closed_form(ones, norms, rates, ones > 0, alpha, rate=1.0)
    torch.testing.assert_close(weights, expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("solver", [closed_form, paper])
def test_what_is_not_known_keeps_its_weight(solver):
    weights, known = torch.tensor([0.5, 1.5, 1.0]), torch.tensor([True, False, True])
    norms = torch.tensor([1.0, torch.nan, 8.0])
    rates = relative_rates(torch.tensor([1.0, torch.nan, 1.0]), torch.tensor([2.0, torch.nan, 1.0]), known)
    moved = solver(weights, norms, rates, known, 1.0, 0.5)
    assert moved[1] == 1.5
    assert moved[0] > 0.5
    assert moved.sum().item() == pytest.approx(3.0)
    nothing = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(solver(weights, norms, torch.ones(3), nothing, 1.0, 0.5), weights)


def test_rates_by_hand():
    known = torch.tensor([True, True, False])
    found = relative_rates(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([4.0, 4.0, 1.0]), known)
    assert found.tolist() == [0.5, 1.5, 1.0]
    alone = relative_rates(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]), torch.tensor([True, False]))
    assert alone.tolist() == [1.0, 1.0]


def test_a_loss_of_0_or_below_is_no_end():
    """Its rate is small, and a power of it a number; a first loss of 0 can't be divided by."""
    losses, ones = torch.tensor([0.0, -1.0, 1.0]), torch.ones(3)
    rates = relative_rates(losses, ones, ones > 0)
    assert (rates**1.5 > 0).all()
    initial = InitialLosses(3, 1)
    initial.add(losses, ones > 0)
    assert initial.known.tolist() == [False, False, True]
