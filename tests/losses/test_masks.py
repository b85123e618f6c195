"""Losses of masks against torch's, loops over pixels, closed forms and differences."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import masks_to_boxes

from lightning_vlm.errors import UserError
from lightning_vlm.losses.masks import box_projection_loss, covered, dice_loss, mask_cross_entropy


def drawn(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 5, 7, generator=generator, dtype=dtype)
    return logits.requires_grad_(), (torch.rand(3, 5, 7, generator=generator) > 0.6)


def test_cross_entropy_is_torchs():
    logits, targets = drawn()
    found = mask_cross_entropy(logits, targets)
    for mask in range(3):
        expected = F.binary_cross_entropy_with_logits(logits[mask], targets[mask].double())
        torch.testing.assert_close(found[mask], expected)


def test_dice_is_counted_pixel_by_pixel():
    logits, targets = drawn(1)
    found = dice_loss(logits, targets)
    for mask in range(3):
        probabilities = [float(one) for one in logits[mask].flatten().sigmoid()]
        right = [float(one) for one in targets[mask].flatten()]
        shared = sum(p * g for p, g in zip(probabilities, right, strict=True))
        expected = 1 - (2 * shared + 1) / (sum(probabilities) + sum(right) + 1)
        assert found[mask].item() == pytest.approx(expected, rel=1e-12)


def test_a_projection_is_counted_row_by_row():
    logits, _ = drawn(2)
    whole = [[0.0, 0.2, 3 / 7, 0.8], [2 / 7, 0.0, 1.0, 0.4], [0.0, 0.0, 1.0, 1.0]]
    boxes = torch.tensor(whole, dtype=torch.float64)
    found = box_projection_loss(logits, boxes)
    for mask in range(3):
        x1, y1, x2, y2 = boxes[mask].tolist()
        total = 0.0
        for size, low, high, dim in ((7, x1, x2, 0), (5, y1, y2, 1)):
            x = [float(one) for one in logits[mask].sigmoid().amax(dim)]
            y = [float(low * size - 1e-9 <= at and at + 1 <= high * size + 1e-9) for at in range(size)]
            shared = sum(p * g for p, g in zip(x, y, strict=True))
            total += 1 - 2 * shared / (sum(p * p for p in x) + sum(g * g for g in y))
        assert found[mask].item() == pytest.approx(total, rel=1e-6)


def test_a_mask_and_its_own_box_agree_however_sure_the_mask_is():
    targets = torch.zeros(2, 5, 7, dtype=torch.bool)
    targets[0, 1:4, 2] = targets[0, 3, 2:6] = True  # an L
    targets[1, 0, 0] = True
    corners = masks_to_boxes(targets).double()
    boxes = torch.stack(
        (corners[:, 0] / 7, corners[:, 1] / 5, (corners[:, 2] + 1) / 7, (corners[:, 3] + 1) / 5), 1
    )
    for sure in (20.0, 100.0, 1000.0):
        logits = torch.where(targets, sure, -sure).double()
        assert box_projection_loss(logits, boxes).abs().max() < 1e-7
        assert dice_loss(logits, targets).abs().max() < 1e-7
        assert mask_cross_entropy(logits, targets).abs().max() < 1e-7
        assert (box_projection_loss(logits, boxes / 2) > 0.05).all()


def test_a_pixel_counts_by_how_much_of_it_is_covered():
    found = covered(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.35, 0.5, 0.1]), 5)
    expected = [[0.5, 0.75, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gradients_are_those_of_differences():
    logits, targets = drawn(4)
    boxes = torch.tensor([[0.11, 0.23, 0.47, 0.81]] * 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: mask_cross_entropy(one, targets), logits)
    assert torch.autograd.gradcheck(lambda one: dice_loss(one, targets), logits)
    assert torch.autograd.gradcheck(box_projection_loss, (logits, boxes))


@pytest.mark.parametrize("logit", [-1e4, -50.0, 0.0, 50.0, 1e4])
def test_empty_masks_and_boxes_have_finite_gradients(logit):
    logits = torch.full((2, 4, 4), logit, requires_grad=True)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.2, 0.3]], requires_grad=True)
    nothing = torch.zeros(2, 4, 4)
    losses = (
        mask_cross_entropy(logits, nothing) + dice_loss(logits, nothing) + box_projection_loss(logits, boxes)
    )
    losses.sum().backward()
    for one in (losses, logits.grad, boxes.grad):
        assert one.isfinite().all()


def test_halves_are_counted_in_float32():
    logits, targets = drawn(5)
    halves = logits.detach().bfloat16()
    for loss in (mask_cross_entropy, dice_loss):
        assert loss(halves, targets).dtype == torch.float32
        torch.testing.assert_close(
            loss(halves, targets).double(), loss(halves.double(), targets), rtol=1e-5, atol=0
        )


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"masks: found shapes \[1, 2, 2\] and \[2, 2\]"):
        dice_loss(torch.zeros(1, 2, 2), torch.zeros(2, 2))
    with pytest.raises(UserError, match=r"masks and boxes: found shapes \[1, 2, 2\] and \[4\]"):
        box_projection_loss(torch.zeros(1, 2, 2), torch.zeros(4))
