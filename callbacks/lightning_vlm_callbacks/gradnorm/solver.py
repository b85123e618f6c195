"""GradNorm's equations: weights of tasks from their gradients' norms and how far behind the tasks are."""

import torch
from torch import Tensor

__all__ = ["closed_form", "paper", "relative_rates", "weight_gradient"]

_LEAST_SHARE = 1e-8
"""A loss of zero or below counts as this share of the first one, so that its power is a number."""
_LEAST_WEIGHT = 1e-6
"""No weight ends at zero, from where it would never come back."""


def relative_rates(losses: Tensor, initial: Tensor, known: Tensor) -> Tensor:
    """How far behind each task is, the paper's r: L(t)/L(0) over its mean.

    Args:
        losses: L(t), shape [tasks].
        initial: L(0), shape [tasks].
        known: Which tasks have both, bool, shape [tasks].

    Returns:
        Tensor of shape [tasks]: above 1 if the loss has fallen less than the others', 1 if it isn't known.

    >>> relative_rates(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), torch.tensor([True, True]))
    tensor([0.5000, 1.5000])
    """
    share = torch.where(known, losses / initial, 0).clamp(min=_LEAST_SHARE)
    mean = torch.where(known, share, 0).sum() / known.sum().clamp(min=1)
    return torch.where(known, share / mean, 1)


def weight_gradient(weights: Tensor, norms: Tensor, rates: Tensor, alpha: float) -> Tensor:
    """The gradient of the paper's loss Σ|wᵢnᵢ − [Ḡ rᵢ^α]| for the weights w, its target held constant.

    nᵢ doesn't depend on w, so it is nᵢ sign(wᵢnᵢ − Ḡrᵢ^α): no graph of a gradient is needed.

    Args:
        weights: w, shape [tasks].
        norms: n, those of the gradients of tasks before their weights; shape [tasks].
        rates: r, shape [tasks].
        alpha: How strongly tasks that are behind are favoured.

    >>> ones = torch.ones(2)
    >>> weight_gradient(ones, torch.tensor([1.0, 3.0]), ones, 1.0)
    tensor([-1.,  3.])
    """
    weighted = weights * norms
    target = weighted.mean() * rates**alpha
    return norms * (weighted - target).sign()


def closed_form(
    weights: Tensor, norms: Tensor, rates: Tensor, known: Tensor, alpha: float, rate: float
) -> Tensor:
    """Go a share of the way, in logarithms, to the weights at which GradNorm's dynamics come to rest.

    There every weighted norm is in proportion to r^α: wᵢ ∝ rᵢ^α / nᵢ. The paper's own steps go there too if
    the mean of r^α is 1 (α of 0 or 1); for other α they come to rest near it.

    Args:
        weights: As in `weight_gradient`; so are norms, rates and alpha.
        known: Which tasks have a norm above 0, bool, shape [tasks]. The others keep their weight.
        rate: The share of the way; 1 is all of it.

    Returns:
        The new weights, at least 1e-6; their sum is the number of tasks.

    >>> norms, ones = torch.tensor([1.0, 10.0]), torch.ones(2)
    >>> closed_form(ones, norms, ones, known=ones > 0, alpha=1.0, rate=1.0) * norms
    tensor([1.8182, 1.8182])
    """
    aim = rates**alpha / torch.where(known, norms, 1)  # up to a factor common to all tasks
    return _with_sum(weights * (aim / weights) ** rate, weights, known)


def paper(weights: Tensor, norms: Tensor, rates: Tensor, known: Tensor, alpha: float, rate: float) -> Tensor:
    """One step of the paper's gradient descent, in logarithms of the weights and in units of the mean norm.

    The paper's own steps on w itself depend on the loss's unit, and can make weights negative.

    Args:
        weights: As in `closed_form`; so is all else but the rate.
        rate: The learning rate.

    Returns:
        As `closed_form`.
    """
    total = torch.where(known, weights * norms, 0).sum()
    mean_norm = total / known.sum().clamp(min=1)
    unit = torch.where(known, norms, mean_norm / weights) / mean_norm
    slope = torch.where(known, weights * weight_gradient(weights, unit, rates, alpha), 0)
    step = -rate * slope.clamp(-1, 1)
    return _with_sum(weights * step.exp(), weights, known)


def _with_sum(moved: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    """The moved weights of known tasks, scaled so that the sum of all is the number of tasks."""
    rest = len(weights) - torch.where(known, 0, weights).sum()
    sum_of_moved = torch.where(known, moved, 0).sum()
    scaled = torch.where(known & (sum_of_moved > 0), moved * rest / sum_of_moved, weights)
    return scaled.clamp(min=_LEAST_WEIGHT)
