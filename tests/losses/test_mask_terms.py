"""The loss of masks, and the head that makes them, against autograd, PyTorch's own functions and by hand."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vlm.data.batch.masks import SIDE, Masks, PictureGrid, join_masks
from lightning_vlm.errors import UserError
from lightning_vlm.losses.mask_terms import mask_losses, weights_at
from lightning_vlm.models.mask_head import MaskHead, MaskOptions


def test_one_by_one():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 4, dtype=torch.float64)
    targets = (torch.rand(3, 5, 4) > 0.6).to(torch.uint8)
    both = mask_losses(logits, targets, torch.tensor([0, 1, 0]), bce=2.0, dice=0.5, consistency=0.1)
    for row, is_box in enumerate((False, True, False)):
        values, right = logits[row].sigmoid(), targets[row].double()
        bce = F.binary_cross_entropy(values, right)
        dice = 1 - (2 * (values * right).sum() + 1) / (values.sum() + right.sum() + 1)
        ys, xs = right.nonzero().unbind(1)
        box = torch.zeros(5, 4, dtype=torch.float64)
        box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = 1
        shadows = 0
        for axis in (0, 1):
            made, wanted = values.amax(axis), box.amax(axis)
            shadows += 1 - 2 * (made * wanted).sum() / (made.square().sum() + wanted.square().sum())
        expected = 0.1 * shadows + (0 if is_box else 2 * bce + 0.5 * dice)
        torch.testing.assert_close(both[row], expected)


def test_huge_logits_are_finite():
    logits = torch.tensor([[[1e30, -1e30]]], requires_grad=True)
    loss = mask_losses(logits, torch.tensor([[[0, 1]]]), torch.zeros(1), 2.0, 0.5, 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_weights_are_those_of_the_tokens():
    found = weights_at(torch.tensor([2, 5]), torch.tensor([0.5, 2.0]), torch.tensor([3, 4, 6]), 8)
    assert found.tolist() == [0.5, 0.0, 2.0]


@pytest.mark.parametrize("cells", [1, 3])
def test_the_head_compares_and_stretches(cells):
    """Two pictures of different grids in one call, against one at a time with PyTorch's interpolation."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 12, 8)
    grids = [PictureGrid(torch.arange(1, 7), 2, 3), PictureGrid(torch.arange(12, 16), 4, 1)]
    masks = Masks.on(torch.tensor([9, 20, 21]), [grids[0], grids[1], grids[1]])
    head = MaskHead(8, channels=5, cells=cells)
    made = head(hidden, masks)
    assert made.shape == (3, SIDE, SIDE)
    flat = hidden.flatten(0, 1)
    for row, (place, grid) in enumerate(zip((9, 20, 21), (grids[0], grids[1], grids[1]), strict=True)):
        keys = head.pixels(flat[grid.tokens]).view(grid.rows, grid.columns, cells, cells, 5)
        products = keys @ head.query(flat[place]) / 5**0.5 + head.bias
        picture = products.permute(0, 2, 1, 3).reshape(1, 1, grid.rows * cells, grid.columns * cells)
        expected = F.interpolate(picture, (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(made[row], expected)


def test_masks_of_samples_join():
    one = Masks.on(torch.tensor([7]), [PictureGrid(torch.tensor([1, 2]), 1, 2)])
    other = Masks.on(torch.tensor([5, 6]), [PictureGrid(torch.tensor([0]), 1, 1)] * 2)
    joined = join_masks([None, one, other], [0, 10, 20])
    assert joined.positions.tolist() == [17, 25, 26]
    assert joined.tokens.tolist() == [11, 12, 20, 20]
    assert joined.of.tolist() == [0, 0, 1, 2]
    assert joined.starts.tolist() == [0, 2, 3]
    assert join_masks([None], [0]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chanels": 3}, "mask_head: there is no chanels; did you mean channels?"),
        ({"cells": 0}, "mask_head.cells: found 0; expected a whole number >= 1"),
        ({"bce": float("nan")}, "mask_head.bce: found nan; expected a finite number >= 0"),
        ({"bce": 0, "dice": 0, "consistency": 0}, "mask_head: found no loss; expected one of bce, dice"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        MaskOptions.read(given)
