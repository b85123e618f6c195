"""Losses of coordinates against all numbers one by one, the `ntloss` package, and torchvision's boxes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss

from lightning_vlm.data.batch.number_targets import find_number_targets
from lightning_vlm.losses.coordinates import (
    Candidates,
    box_terms,
    expected_boxes,
    expected_values,
    soft_losses,
    soft_targets,
    wasserstein,
)
from tests.support.numbers import BINS, DIGITS, THREES, targets_of, written

BOXES = [(0.399, 0.1, 0.5, 0.731), (0.005, 0.05, 0.999, 1.0)]


def mass(number, right, sigma, shape):
    """The probability that falls into the bin of a number."""

    def below(x):
        if shape == "gaussian":
            return 0.5 + 0.5 * math.erf(x / sigma / math.sqrt(2))
        half = sigma * math.sqrt(6)
        if abs(x) >= half:
            return float(x > 0)
        return (x + half) ** 2 / (2 * half**2) if x < 0 else 1 - (half - x) ** 2 / (2 * half**2)

    return below(number + 0.5 - right) - below(number - 0.5 - right)


@pytest.mark.parametrize("shape", ["gaussian", "triangular"])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
def test_soft_bins_are_the_distribution_itself(sigma, shape):
    numbers, candidates = targets_of(BOXES, BINS, whole=1024)
    found = soft_targets(numbers, candidates, sigma, shape)
    assert found.shape == (8, 1024)
    for row, right in zip(found, numbers.values.tolist(), strict=True):
        expected = torch.tensor([mass(number, right, sigma, shape) for number in range(1024)])
        torch.testing.assert_close(row, expected / expected.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", ["gaussian", "triangular"])
@pytest.mark.parametrize(("tokens", "size"), [(DIGITS, 1), (THREES, 2), (THREES, 3)])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 60.0])
def test_soft_digits_are_the_distribution_of_numbers_factored(tokens, size, sigma, shape):
    """Each token against all numbers of as many digits that begin as the right one does."""
    numbers, candidates = targets_of(BOXES, tokens, size=size)
    found = soft_targets(numbers, candidates, sigma, shape)
    torch.testing.assert_close(found.sum(1), torch.ones(len(found)))
    known = zip(candidates.digits.tolist(), candidates.values.tolist(), strict=True)
    place = {pair: at for at, pair in enumerate(known)}
    row = 0
    for value in [value for box in BOXES for value in box]:
        text = str(round(1000 * value))
        masses = [mass(number, int(text), sigma, shape) for number in range(10 ** len(text))]
        for start in range(0, len(text), size):
            expected = torch.zeros(len(candidates.ids))
            for number in range(10 ** len(text)):
                digits = f"{number:0{len(text)}}"
                if digits.startswith(text[:start]) and not (len(text) > 1 and not start and digits[0] == "0"):
                    other = digits[start : start + size]
                    expected[place[len(other), int(other)]] += masses[number]
            expected /= expected.sum()
            torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-5)
            row += 1
    assert row == len(found)


@pytest.mark.parametrize("shape", ["gaussian", "triangular"])
@pytest.mark.parametrize("tokens", [DIGITS, BINS])
def test_without_width_soft_targets_are_cross_entropy(tokens, shape):
    numbers, candidates = targets_of(BOXES, tokens, whole=1000 if 1 in tokens else 1024)
    found = soft_targets(numbers, candidates, 1e-3, shape)
    right = candidates.values == numbers.values[:, None]
    assert torch.equal(found, right.float())
    logits = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = soft_losses(logits, numbers, candidates, found)
    assert losses.beyond.abs().max() == 0
    torch.testing.assert_close(
        losses.divergence, F.cross_entropy(logits, right.int().argmax(1), reduction="none")
    )


def test_cross_entropy_and_what_is_beyond_are_that_of_soft_targets():
    """Under the softmax over a whole vocabulary, of which the candidates are a part."""
    ids, coordinates = written(BOXES, DIGITS)
    numbers = find_number_targets(coordinates, ids, torch.arange(len(ids) - 1), DIGITS)
    candidates = Candidates.of(DIGITS, [1])
    vocabulary = torch.randn(len(ids), 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = vocabulary[numbers.places].requires_grad_()
    soft = soft_targets(numbers, candidates, 2.0)
    everywhere = torch.zeros(rows.shape, dtype=torch.float64)
    everywhere[:, candidates.ids] = soft.double()
    expected = F.cross_entropy(rows, everywhere, reduction="none")
    hard = F.cross_entropy(rows, ids[1:][numbers.places], reduction="none")
    found = hard + soft_losses(rows[:, candidates.ids], numbers, candidates, soft).beyond
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = [torch.autograd.grad(one.sum(), rows, retain_graph=True)[0] for one in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_the_divergence_is_nothing_where_the_model_says_the_soft_targets():
    numbers, candidates = targets_of(BOXES, DIGITS)
    soft = soft_targets(numbers, candidates, 1.5)
    losses = soft_losses(soft.double().log().clamp(min=-500), numbers, candidates, soft)
    assert losses.divergence.abs().max() < 1e-6


def ntloss_logits(rows, size):
    return 3 * torch.sin(torch.arange(rows * size, dtype=torch.float64) ** 1.5).view(rows, size)


def test_wasserstein_is_that_of_ntloss():
    """Values of ntloss 0.3.2, `NTLoss(tokenizer, reweigh=False)` as in the paper, over the vocabulary of a
    WordLevel tokenizer: `box`, `(`, the numbers from 0 on, `,`, `)`; bins with `digit_level=False`:

        loss(3 * torch.sin(torch.arange(10 * 14).double() ** 1.5).view(1, 10, 14), torch.arange(2, 12)[None],
             reduction="none")
        loss(3 * torch.sin(torch.arange(5 * 1004).double() ** 1.5).view(1, 5, 1004),
             2 + torch.tensor([[0, 7, 500, 731, 999]]), reduction="none")
    """
    expected = [
        [4.21929474514776, 2.147140529949115, 3.3905780529016107, 2.1094701673208993, 4.000801134588376],
        [3.661586643109745, 2.8879252996468727, 2.9172514489336043, 3.952105402420891, 3.9038776980577508],
    ]
    right = [value / 10 for value in range(10)]
    numbers, candidates = targets_of([right[:4], right[4:8], right[8:]], DIGITS, whole=10)
    found = wasserstein(ntloss_logits(10, 14)[:, 2:12], numbers, candidates)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).flatten())

    expected = [479.2470751831274, 496.216617027382, 248.7840247686275, 308.36260299851483, 489.2348561071973]
    bins = {0: type(BINS[0])(BINS[0].ids[:1000], BINS[0].values[:1000])}
    right = [(value + 0.5) / 1000 for value in (0, 7, 500, 731, 999)]
    numbers, candidates = targets_of([right[:4], right[4:]], bins)
    assert numbers.values.tolist() == [0, 7, 500, 731, 999]
    found = wasserstein(ntloss_logits(5, 1004)[:, 2:1002], numbers, candidates)
    torch.testing.assert_close(999 / 9 * found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("tokens", "whole", "size"), [(DIGITS, 1000, 1), (THREES, 1000, 3), (BINS, 1024, 1)])
def test_the_right_tokens_make_the_right_box(tokens, whole, size):
    """Also where it lies between bins; and a token that is off moves its coordinate by what it is worth."""
    exact = [(0.39912, 0.1004, 0.5, 0.7317), (0.25, 0.875)]
    numbers, candidates = targets_of(exact, tokens, whole=whole, size=size)
    logits = (
        200.0
        * (candidates.values == numbers.values[:, None])
        * (candidates.digits == numbers.digits[:, None])
    )
    expected = expected_values(logits.double(), numbers, candidates)
    torch.testing.assert_close(expected, numbers.values.double())
    boxes = expected_boxes(expected, numbers)
    torch.testing.assert_close(boxes[0], torch.tensor(exact[0], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.testing.assert_close(boxes[1], torch.tensor([0.25, 0.875, 0, 0], dtype=torch.float64))
    assert box_terms(boxes, numbers.targets, "giou", 2.5).abs().max() < 1e-5
    expected[0] += 1
    moved = expected_boxes(expected, numbers) - boxes
    first = (
        {DIGITS[1]: 0.1}.get(tokens.get(1)) if size == 1 and 1 in tokens else {3: 0.001}.get(size, 1 / 1024)
    )
    torch.testing.assert_close(moved[0, 0].item(), first, rtol=1e-5, atol=0)
    assert moved.flatten()[1:].abs().max() == 0


def test_a_box_costs_its_overlap_and_differences_and_a_point_its_differences():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.8], [0.3, 0.4, 0.0, 0.0]], dtype=torch.float64)
    nan = torch.nan
    targets = torch.tensor([[0.2, 0.2, 0.6, 0.9], [0.5, 0.1, nan, nan]])
    found = box_terms(boxes, targets, "giou", 2.5)
    wide = targets.double()
    giou = generalized_box_iou_loss(boxes[:1], wide[:1], eps=0)
    torch.testing.assert_close(found[:1], giou + 2.5 * (boxes[:1] - wide[:1]).abs().sum(1))
    torch.testing.assert_close(found[1], 2.5 * (boxes[1, :2] - wide[1, :2]).abs().sum())


@pytest.mark.parametrize("loss", ["soft", "wasserstein", "iou"])
@pytest.mark.parametrize("tokens", [DIGITS, BINS])
def test_gradients_are_those_of_differences(tokens, loss):
    few = {kind: type(one)(one.ids[:16], one.values[:16]) for kind, one in tokens.items()}
    numbers, candidates = targets_of([(0.2, 0.3, 0.8, 0.9), (0.5, 0.6)], few, whole=10)
    shape = (len(numbers.values), len(candidates.ids))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def losses(logits):
        if loss == "wasserstein":
            return wasserstein(logits, numbers, candidates)
        if loss == "soft":
            return soft_losses(logits, numbers, candidates, soft_targets(numbers, candidates, 1.3))
        boxes = expected_boxes(expected_values(logits, numbers, candidates), numbers)
        return box_terms(boxes, numbers.targets, "giou", 2.5)

    assert torch.autograd.gradcheck(losses, logits.requires_grad_())


def test_tokens_of_other_lengths_have_no_part():
    """100 may be any number of three digits, never 99: what follows then would be another number."""
    numbers, candidates = targets_of([(0.1, 0.05, 1.0, 0.999)], THREES, size=3)
    assert numbers.kinds == (1, 2, 3)
    logits = torch.zeros(len(numbers.values), len(candidates.ids), requires_grad=True)
    soft = soft_targets(numbers, candidates, 50.0)
    found = [
        wasserstein(logits, numbers, candidates).sum(),
        soft_losses(logits, numbers, candidates, soft).divergence.sum(),
        expected_values(logits, numbers, candidates).sum(),
    ]
    others = numbers.digits[:, None] != candidates.digits
    for one in found:
        (slopes,) = torch.autograd.grad(one, logits, retain_graph=True)
        assert not slopes[others].any()
        assert slopes.any(1).all()
    assert not soft[others].any()


def test_a_number_that_is_not_learned_has_no_part():
    """Its weight is 0, so it is no target; the others keep their places."""
    ids, coordinates = written(BOXES, DIGITS)
    kept = torch.tensor([at for at in range(len(ids) - 1) if at not in (1, 2)])  # 399 has lost 3 and 9
    numbers = find_number_targets(coordinates, ids, kept, DIGITS)
    whole = find_number_targets(coordinates, ids, torch.arange(len(ids) - 1), DIGITS)
    assert len(numbers.values) == len(whole.values) - 2
    assert torch.equal(kept[numbers.places], whole.places[2:])
    for name in ("values", "worth", "behind", "bin", "leads", "axes"):
        assert torch.equal(getattr(numbers, name), getattr(whole, name)[2:]), name
    assert find_number_targets(coordinates, ids, torch.tensor([0]), DIGITS) is None
    assert find_number_targets(coordinates, ids, torch.zeros(0, dtype=torch.int64), DIGITS) is None


def test_the_order_of_axes_makes_no_difference():
    """PaliGemma writes y before x; and boxes needn't follow each other in order."""
    ids, coordinates = written(BOXES, DIGITS)
    mixed = torch.randperm(len(coordinates.positions), generator=torch.Generator().manual_seed(0))
    fields = ("positions", "item", "axis", "worth_bits", "digits")
    shuffled = coordinates._replace(**{name: getattr(coordinates, name)[mixed] for name in fields})
    every = torch.arange(len(ids) - 1)
    first, second = (find_number_targets(one, ids, every, DIGITS) for one in (coordinates, shuffled))
    for one, other in zip(first[:-1], second[:-1], strict=True):
        assert torch.equal(one, other)
