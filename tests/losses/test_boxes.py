"""Overlaps against torchvision's, closed forms and differences; matching against all assignments."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import (
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou,
)

from lightning_vlm.errors import UserError
from lightning_vlm.losses.boxes import box_overlap, hungarian, l1

KINDS = ("iou", "giou", "diou", "ciou")


def drawn_boxes(number, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=generator, dtype=torch.float64)
    return torch.cat((corners.amin(1), corners.amax(1)), 1).to(dtype)


def reference(predicted, target, kind):
    if kind == "iou":
        return box_iou(predicted, target).diagonal()
    if kind == "giou":
        return generalized_box_iou(predicted, target).diagonal()
    if kind == "diou":
        return 1 - distance_box_iou_loss(predicted, target, eps=1e-30)
    return 1 - complete_box_iou_loss(predicted, target)  # it adds 1e-7 to areas in any case


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_torchvision(kind):
    predicted, target = drawn_boxes(400).requires_grad_(), drawn_boxes(400, seed=1)
    ours, theirs = box_overlap(predicted, target, kind), reference(predicted, target, kind)
    off = 1e-6 if kind == "ciou" else 1e-12
    torch.testing.assert_close(ours, theirs, rtol=off, atol=off)
    weights = torch.linspace(0.5, 2, 400, dtype=torch.float64)
    ours_grad, theirs_grad = (
        torch.autograd.grad((one * weights).sum(), predicted)[0] for one in (ours, theirs)
    )
    assert ours_grad.abs().max() > 1
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=100 * off, atol=100 * off)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_halves_are_computed_in_float32(kind):
    predicted, target = drawn_boxes(400, torch.float32), drawn_boxes(400, torch.float32, seed=1)
    exact = reference(predicted.double(), target.double(), kind)
    assert box_overlap(predicted, target, kind).dtype == torch.float32
    torch.testing.assert_close(box_overlap(predicted, target, kind).double(), exact, rtol=1e-4, atol=1e-5)
    halves = predicted.bfloat16()
    exact = reference(halves.double(), target.double(), kind)
    torch.testing.assert_close(box_overlap(halves, target, kind).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_gradients_are_those_of_differences(kind):
    """Of boxes without ties; CIoU's gradient is none of its value, for its factor has none."""
    predicted, target = drawn_boxes(20, seed=4).requires_grad_(), drawn_boxes(20, seed=5)
    assert torch.autograd.gradcheck(lambda boxes: box_overlap(boxes, target, kind), predicted)
    assert torch.autograd.gradcheck(lambda boxes: l1(boxes, target), predicted)


def test_closed_forms():
    box = torch.tensor([[0.25, 0.25, 0.5, 0.75]])
    for kind in KINDS:
        assert box_overlap(box, box, kind).item() == 1
    square = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    found = {kind: box_overlap(square, square + 0.5, kind).item() for kind in KINDS}
    assert found == {"iou": 0, "giou": -0.5, "diou": -0.25, "ciou": -0.25}  # corners touch
    half = torch.tensor([[0.0, 0.0, 0.5, 0.25]])
    assert box_overlap(half, square, "iou").item() == box_overlap(half, square, "giou").item() == 0.5
    pixels = box_overlap(1000 * half, 1000 * square, "ciou")
    torch.testing.assert_close(pixels, box_overlap(half, square, "ciou"))
    torch.testing.assert_close(l1(half, square), torch.tensor([0.25]))


@pytest.mark.parametrize("shape", [(), (2, 3), (3, 2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_may_lie_in_any_shape(kind, shape):
    predicted, target = drawn_boxes(12), drawn_boxes(12, seed=1)
    target[4, 2] = target[4, 0]  # without area
    expected = box_overlap(predicted, target, kind)
    number = math.prod(shape)
    found = box_overlap(predicted[:number].view(*shape, 4), target[:number].view(*shape, 4), kind)
    assert torch.equal(found, expected[:number].view(shape))
    assert torch.equal(
        l1(predicted[:number].view(*shape, 4), target[:number].view(*shape, 4)),
        l1(predicted, target)[:number].view(shape),
    )


coordinate = st.sampled_from([0.0, 1e-30, 1e-7, 0.25, 0.5, 0.5000001, 1.0, 1e4])
any_box = st.tuples(*[coordinate] * 4)


@pytest.mark.parametrize("kind", KINDS)
@given(predicted=any_box, target=any_box)
@settings(max_examples=300, deadline=None)
def test_every_box_has_a_finite_value_and_gradient(kind, predicted, target):
    """Empty, inverted, the same, a point, very large: also with derivatives of float32."""
    boxes = torch.tensor([predicted], requires_grad=True)
    value = box_overlap(boxes, torch.tensor([target]), kind)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert -2.1 < value.item() <= 1
    assert torch.isfinite(boxes.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_without_area_teaches_nothing(kind):
    line = torch.tensor([[0.2, 0.0, 0.2, 1.0]])
    predicted = torch.tensor([[0.1, 0.0, 0.3, 1.0]], requires_grad=True)
    assert not box_overlap(line, predicted, kind).requires_grad, "what is right is learned by nothing"
    assert not l1(line, predicted).requires_grad
    value = box_overlap(predicted, line, kind)
    value.sum().backward()
    assert value.item() == 0
    assert not predicted.grad.any()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_descent_turns_an_inverted_box_around(kind):
    """Together with L1, as training has it; the first step already goes the right way."""
    target = torch.tensor([[0.2, 0.3, 0.6, 0.9]])
    boxes = torch.tensor([[0.9, 0.8, 0.1, 0.1]], requires_grad=True)
    for _ in range(400):
        loss = (1 - box_overlap(boxes, target, kind) + l1(boxes, target)).sum()
        (slope,) = torch.autograd.grad(loss, boxes)
        boxes = (boxes - 0.005 * slope).detach().requires_grad_()
    assert box_overlap(boxes, target, "iou").item() > 0.9


def test_l1_leaves_out_what_points_lack():
    predicted = torch.rand(2, 4, requires_grad=True)
    target = torch.tensor([[0.5, 0.5, torch.nan, torch.nan], [0.1, 0.2, 0.3, 0.4]])
    found = l1(predicted, target)
    torch.testing.assert_close(found[0], (predicted[0, :2] - 0.5).abs().sum())
    torch.testing.assert_close(found[1], (predicted[1] - target[1]).abs().sum())
    found.sum().backward()
    assert predicted.grad[0].tolist()[2:] == [0, 0]
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 4), (5, 3)])
def test_the_matching_is_the_best_of_all(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    pairs = hungarian(scores)
    total = sum(scores[pair].item() for pair in pairs)
    smaller, larger = min(shape), max(shape)
    wide = scores if shape[0] <= shape[1] else scores.T
    ways = itertools.permutations(range(larger), smaller)
    best = max(sum(wide[row, column].item() for row, column in enumerate(way)) for way in ways)
    assert total == pytest.approx(best)
    assert len(pairs) == len({row for row, _ in pairs}) == len({column for _, column in pairs}) == smaller


def test_matching_of_nothing_and_of_what_is_unknown():
    assert hungarian(torch.zeros(0, 3)) == hungarian(torch.zeros(2, 0)) == []
    unknown = torch.tensor([[torch.nan, 0.2], [0.9, 0.3]])
    assert hungarian(unknown) == [(0, 1), (1, 0)]
    assert len(hungarian(torch.full((2, 2), torch.nan))) == 2


def test_mistakes_are_told():
    box = torch.zeros(1, 4)
    with pytest.raises(UserError, match="found 'eiou'; expected one of iou, giou, diou, ciou"):
        box_overlap(box, box, "eiou")
    with pytest.raises(UserError, match=r"found shapes \[1, 4\] and \[4\]"):
        box_overlap(box, box[0])
