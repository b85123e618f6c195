"""Losses of the tokens of coordinates that know how far one number is from another.

Each is a function of the logits of the tokens that a number may be made of, and of nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_vlm.data.batch.number_targets import NumberTargets, has_zero_in_front
from lightning_vlm.data.boxes.number_tokens import NumberTokens
from lightning_vlm.losses.boxes import Overlap, box_overlap, l1

Shape = Literal["gaussian", "triangular"]
"""How the probability of soft targets falls off with the distance."""
NEVER = -1e30
"""The logit of a token that can't stand somewhere; minus infinity times 0 would be NaN."""


class Candidates(NamedTuple):
    """All tokens that numbers are made of.

    Args:
        ids: Tensor of shape [candidates], int64.
        values: Tensor of shape [candidates], float32: the number that each one writes.
        digits: Tensor of shape [candidates], int64: how many digits each has; 0 for a bin.
        unit: Tensor of shape [candidates], float32: nine over the largest distance of two tokens with as many
            digits, so that distances go up to 9 whatever the tokens are.
    """

    ids: Tensor
    values: Tensor
    digits: Tensor
    unit: Tensor

    @classmethod
    def of(cls, tokens: Mapping[int, NumberTokens], kinds: Sequence[int]) -> "Candidates":
        """Those with some numbers of digits.

        >>> digits = NumberTokens(torch.arange(100, 110), torch.arange(10.0))
        >>> Candidates.of({1: digits}, [1]).unit[0]
        tensor(1.)
        """
        chosen = [tokens[kind] for kind in kinds]
        return cls(
            ids=torch.cat([one.ids for one in chosen]),
            values=torch.cat([one.values for one in chosen]),
            digits=torch.cat(
                [torch.full_like(one.ids, kind) for kind, one in zip(kinds, chosen, strict=True)]
            ),
            unit=torch.cat(
                [
                    9 / (one.values.max() - one.values.min()).clamp(min=1).expand(len(one.ids))
                    for one in chosen
                ]
            ),
        )

    def to(self, device: torch.device) -> "Candidates":
        """The same on a device, without waiting for it."""
        return Candidates(*(one.to(device, non_blocking=True) for one in self))


def choices(numbers: NumberTargets, candidates: Candidates) -> Tensor:
    """Which tokens may stand where each number's token does: those with as many digits.

    Returns:
        Tensor of shape [numbers, candidates], bool.
    """
    return numbers.digits[:, None] == candidates.digits


def soft_targets(
    numbers: NumberTargets, candidates: Candidates, sigma: float, shape: Shape = "gaussian"
) -> Tensor:
    """Probabilities that fall off with the distance from the right number.

    The right number, in the middle of its bin, becomes a distribution with standard deviation `sigma`,
    counted in bins: units of the last digit. A bin's probability is that of the numbers that fall into it. A
    number of several digits has the same distribution, factored along its tokens: each token's is that of the
    numbers that begin as the right one does up to there. So the 3 of 399 may also be a 4 (400 is near), that
    of 350 hardly, and the last digit is as uncertain as a bin. A number doesn't begin with a 0 unless the
    right one does: 99 isn't written 099.

    Args:
        numbers: The tokens of numbers.
        candidates: What they may be.
        sigma: Above 0. As it goes to 0 this becomes the one right token.
        shape: `gaussian`, or `triangular`, which is 0 from a distance of √6 sigma on.

    Returns:
        Tensor of shape [numbers, candidates], float32, each row with sum 1.
    """
    # In units of each token's value, a candidate c stands for the numbers from c to c + 1.
    middle = (numbers.values + numbers.behind + numbers.bin / 2)[:, None]
    width = sigma * numbers.bin[:, None]
    below = _cumulative((candidates.values - middle) / width, shape)
    upto = _cumulative((candidates.values + 1 - middle) / width, shape)
    zero_in_front = has_zero_in_front(candidates.values, candidates.digits)
    may_be = choices(numbers, candidates) & ~(numbers.leads[:, None] & zero_in_front)
    mass = (upto - below).clamp(min=0) * may_be
    return mass / mass.sum(1, keepdim=True)


def _cumulative(x: Tensor, shape: Shape) -> Tensor:
    """The probability of what lies below x, of a distribution with mean 0 and standard deviation 1."""
    if shape == "gaussian":
        return torch.special.ndtr(x)
    t = (x / math.sqrt(6)).clamp(-1, 1)
    return 0.5 + t - t * t.abs() / 2


class SoftLosses(NamedTuple):
    """What soft targets cost.

    Args:
        beyond: Tensor of shape [numbers]: the cross-entropy against soft targets less that against the right
            token alone. It is the same under the softmax over the whole vocabulary, so that cross-entropy and
            this together are the cross-entropy against soft targets: what other tokens get costs as before.
        divergence: Tensor of shape [numbers]: the Kullback-Leibler divergence of what the model says of the
            candidates from the soft targets; 0 where it says just these.
    """

    beyond: Tensor
    divergence: Tensor


def soft_losses(
    logits: Tensor, numbers: NumberTargets, candidates: Candidates, targets: Tensor
) -> SoftLosses:
    """Losses against soft targets.

    Args:
        logits: Tensor of shape [numbers, candidates], float32 or float64.
        numbers: The tokens of numbers.
        candidates: What they may be.
        targets: As from `soft_targets`.
    """
    may_be = choices(numbers, candidates)
    logs = logits.masked_fill(~may_be, NEVER).log_softmax(1)
    targets = targets.to(logs.dtype)
    right = (may_be & (candidates.values == numbers.values[:, None])).to(logs.dtype)
    divergence = (torch.xlogy(targets, targets) - targets * logs).sum(1)
    return SoftLosses(((right - targets) * logs).sum(1), divergence)


def wasserstein(logits: Tensor, numbers: NumberTargets, candidates: Candidates) -> Tensor:
    """The number token loss NTL-WAS of Zausinger et al. 2025, https://arxiv.org/abs/2411.02083.

    It is the Wasserstein-1 distance of what the model says of the candidates, by a softmax over them alone,
    from the right one: the mean distance of values, Σ p |value - right value|. As there each token counts by
    itself, a first digit as much as a last one. Distances of digits go up to 9; those of other tokens, such
    as bins, are scaled to that, so that a weight means as much.

    Args:
        logits: Tensor of shape [numbers, candidates], float32 or float64.
        numbers: The tokens of numbers.
        candidates: What they may be.

    Returns:
        Tensor of shape [numbers] of the logits' dtype, 0 to 9.
    """
    probabilities = logits.masked_fill(~choices(numbers, candidates), NEVER).softmax(1)
    distances = (candidates.values - numbers.values[:, None]).abs() * candidates.unit
    return (probabilities * distances).sum(1)


def expected_values(logits: Tensor, numbers: NumberTargets, candidates: Candidates) -> Tensor:
    """The mean of a token's value under the softmax over the candidates alone.

    Args:
        logits: Tensor of shape [numbers, candidates], float32 or float64.
        numbers: The tokens of numbers.
        candidates: What they may be.

    Returns:
        Tensor of shape [numbers] of the logits' dtype.
    """
    probabilities = logits.masked_fill(~choices(numbers, candidates), NEVER).softmax(1)
    return (probabilities * candidates.values).sum(1)


def expected_boxes(expected: Tensor, numbers: NumberTargets) -> Tensor:
    """The boxes that a model means, with a gradient.

    A coordinate is the right one, plus by how much each of its tokens is expected to be off, times what that
    is worth. So it is exactly right where the right tokens have all probability, although these are rounded.
    Each token is expected after the right ones, as the model sees them in training.

    Args:
        expected: Tensor of shape [numbers]: the expected value of each token.
        numbers: The tokens of numbers.

    Returns:
        Tensor of shape [items, 4], in fractions of what the model sees; 0 where there is no number.
    """
    off = (expected - numbers.values) * numbers.worth
    right = numbers.targets.nan_to_num().to(off.dtype).flatten()
    return right.index_add(0, numbers.axes, off).view_as(numbers.targets)


def box_terms(boxes: Tensor, targets: Tensor, overlap: Overlap, l1_weight: float) -> Tensor:
    """What each box costs: 1 - overlap, and `l1_weight` times the differences of its numbers in sum.

    Args:
        boxes: Tensor of shape [items, 4].
        targets: Tensor of shape [items, 4]; of points, which have no overlap, the last two are NaN.
        overlap: Which one.
        l1_weight: Of the differences.

    Returns:
        Tensor of shape [items] of the boxes' dtype.
    """
    are_boxes = ~targets.isnan().any(1)
    apart = 1 - box_overlap(boxes, targets.nan_to_num().to(boxes.dtype), overlap)
    return torch.where(are_boxes, apart, 0) + l1_weight * l1(boxes, targets.to(boxes.dtype))
