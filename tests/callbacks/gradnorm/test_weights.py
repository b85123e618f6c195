"""Weights follow the equations in a fit, and nothing that isn't known or finite moves them."""

import math

import pytest
import torch
from lightning_vlm_callbacks import GradNorm, TaskWeights

from tests.support.task_modules import TASKS, Sorts, batches, data, one_by_one


def test_weights_follow_the_equations_step_by_step(fit, monkeypatch):
    """The whole recurrence once more, from autograd's norms; L(0) is the mean of the first two losses."""
    monkeypatch.setattr("lightning_vlm_callbacks.gradnorm.statistics._INITIAL_STEPS", 2)
    module, dataset = Sorts(), data()
    keep = fit(module, GradNorm(alpha=0.7, rate=0.3), dataset)
    weights, sums, steps = torch.ones(3), torch.zeros(3), 0
    for before, after, batch in zip(keep.before, keep.weights, batches(dataset, 8), strict=True):
        model = Sorts()
        model.load_state_dict(before)
        assert torch.allclose(model.tasks.weights, weights, rtol=1e-5)
        with torch.no_grad():
            each = model.losses(batch)
        losses = torch.stack([each[batch[2] == task].mean() for task in range(3)])
        if steps < 2:
            sums, steps = sums + losses, steps + 1
        share = losses / (sums / steps)
        rates = share / share.mean()
        aim = rates**0.7 / one_by_one(model, batch)
        aim = 3 * aim / aim.sum()
        weights = weights * (aim / weights) ** 0.3
        weights = 3 * weights / weights.sum()
        torch.testing.assert_close(after, weights, rtol=1e-4, atol=1e-6)


def test_the_scale_of_a_loss_cancels(fit):
    """Loss i times s: its weight over s, and the same training; L(t)/L(0) has no scale."""
    plain = fit(Sorts((1.0, 1.0, 1.0)), GradNorm(rate=1.0), max_steps=1)
    scaled = fit(Sorts((1.0, 100.0, 0.1)), GradNorm(rate=1.0), max_steps=1)
    expected = plain.weights[0] / torch.tensor([1.0, 100.0, 0.1])
    torch.testing.assert_close(scaled.weights[0], 3 * expected / expected.sum(), rtol=1e-4, atol=0)


def test_alpha_0_makes_norms_equal(fit):
    keep = fit(Sorts(lr=0.0), GradNorm(alpha=0.0, rate=1.0), batch=48, max_steps=1)
    weighted = keep.weights[-1] * keep.norms[-1]
    torch.testing.assert_close(weighted, weighted.mean().expand(3), rtol=1e-5, atol=0)


def test_every_n_steps_and_absent_tasks(fit):
    """A task that isn't there keeps its norm; what has never been there keeps its weight."""
    module = Sorts()
    both = data(24, tasks=(0, 1)) + data(24, tasks=(0,))
    keep = fit(module, GradNorm(every_n_steps=2), both)
    assert torch.equal(keep.weights[0], keep.weights[1])
    assert not torch.equal(keep.weights[1], keep.weights[2])
    assert [weights[2].item() for weights in keep.weights] == [1.0] * 6
    assert keep.norms[4][1] == keep.norms[3][1] > 0
    assert torch.isfinite(keep.gradnorm._statistics.losses[:2]).all()
    assert keep.weights[4][1] != keep.weights[3][1]  # on its way to where its last norm and loss want it
    assert all(weights.sum().item() == pytest.approx(3.0) for weights in keep.weights)


def test_given_weights_are_a_start(fit):
    """With the sum that they should have, from the first step on, whatever has been seen by then."""
    module = Sorts()
    module.tasks = TaskWeights(TASKS, [6.0, 2.0, 4.0])
    keep = fit(module, GradNorm(), data(16, tasks=(0, 1)))
    assert keep.before[0]["tasks.weights"].tolist() == [1.5, 0.5, 1.0]
    assert [weights[2].item() for weights in keep.weights] == [1.0, 1.0]
    assert all(weights.sum().item() == pytest.approx(3.0) for weights in keep.weights)


def test_a_task_that_is_solved_makes_no_nan(fit):
    keep = fit(Sorts(scales=(1.0, 0.0, 1.0)), GradNorm())
    assert torch.isfinite(torch.stack(keep.weights)).all()
    assert keep.weights[-1][1] == 1.0
    losing = fit(Sorts(scales=(1.0, 1e-30, 1.0)), GradNorm(rate=1.0))
    assert torch.isfinite(torch.stack(losing.weights)).all()
    assert (torch.stack(losing.weights) > 0).all()


def test_a_step_that_is_not_finite_changes_nothing(fit):
    dataset = data()
    dataset.tensors[1][20:22] = math.inf
    keep = fit(Sorts(lr=0.0), GradNorm(), dataset)
    poisoned = torch.stack(keep.weights)
    assert torch.isfinite(poisoned).all()
    assert torch.isfinite(keep.norms[-1]).all()


@pytest.mark.parametrize("broken", ["gradient", "loss"])
def test_what_is_broken_in_part_is_left_out(fit, broken):
    class Breaks(Sorts):
        def losses(self, batch):
            losses = super().losses(batch)
            if broken == "gradient" and self.global_step == 1:
                return losses + torch.where(batch[2] == 2, (losses * 0).sqrt(), 0)
            return losses

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if broken == "loss" and self.global_step == 1:
                self.tasks.add_rows(torch.tensor([math.inf]), torch.tensor([2]))
            return loss

    keep = fit(Breaks(), GradNorm(), max_steps=2)
    assert keep.norms[1][2] == keep.norms[0][2]
    for values in (keep.norms[1], keep.gradnorm._statistics.losses, keep.weights[1]):
        assert torch.isfinite(values).all()
