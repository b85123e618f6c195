"""Losses of masks, which say what pixels belong to something: a value for each mask, to be weighted."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_vlm.errors import UserError


def mask_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, a mean over the pixels of each mask.

    Args:
        logits: Tensor of shape [masks, height, width], floating-point.
        targets: Tensor of the same shape, 0 to 1.

    Returns:
        Tensor of shape [masks], float32 (float64 for float64 logits).

    Raises:
        UserError: The shapes aren't these.

    >>> mask_cross_entropy(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    tensor([0.6931])
    """
    _check(logits, targets)
    wide = _wide(logits)
    return F.binary_cross_entropy_with_logits(wide, targets.to(wide.dtype), reduction="none").mean((1, 2))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the Dice coefficient of probabilities: 1 - (2 Σpg + 1) / (Σp + Σg + 1) over pixels.

    Unlike cross-entropy it doesn't depend on how much background there is (Milletari et al. 2016,
    https://arxiv.org/abs/1606.04797). The ones keep it 0, with finite slopes, where both masks are empty.

    Args:
        logits, targets: As of `mask_cross_entropy`.

    Returns:
        Tensor of shape [masks], float32 (float64 for float64 logits).

    Raises:
        UserError: The shapes aren't these.

    >>> dice_loss(torch.full((1, 2, 2), 50.0), torch.ones(1, 2, 2))
    tensor([0.])
    """
    _check(logits, targets)
    probabilities = _wide(logits).sigmoid()
    wide = targets.to(probabilities.dtype)
    shared = (probabilities * wide).sum((1, 2))
    return 1 - (2 * shared + 1) / (probabilities.sum((1, 2)) + wide.sum((1, 2)) + 1)


def box_projection_loss(logits: Tensor, boxes: Tensor) -> Tensor:
    """How far a mask and a box disagree: the projection loss of BoxInst (Tian et al. 2021, arXiv 2012.02310).

    The largest probability of each column should say which columns the box has, and that of each row which
    rows: so mass outside the box costs, and an edge of the box without mass does, while the inside is left
    to the mask. Each of the two is 1 - 2 Σ xy / (Σ x² + Σ y²), and they are added.

    A pixel counts by how much of it the box covers, so that the box has a gradient too.

    Args:
        logits: Tensor of shape [masks, height, width], floating-point.
        boxes: Tensor of shape [masks, 4], x1, y1, x2, y2 in fractions of the mask's width and height.

    Returns:
        Tensor of shape [masks], 0 to 2, float32 (float64 for float64 logits).

    Raises:
        UserError: The shapes aren't these.

    >>> logits = torch.full((1, 4, 4), -50.0)
    >>> logits[0, 1:3, 0:2] = 50.0
    >>> box_projection_loss(logits, torch.tensor([[0.0, 0.25, 0.5, 0.75]]))
    tensor([0.])
    """
    if logits.ndim != 3 or boxes.shape != (len(logits), 4):
        found = f"{list(logits.shape)} and {list(boxes.shape)}"
        raise UserError(f"masks and boxes: found shapes {found}; expected [masks, height, width], [masks, 4]")
    probabilities = _wide(logits).sigmoid()
    wide = boxes.to(probabilities.dtype)
    columns = covered(wide[:, 0], wide[:, 2], logits.shape[2])
    rows = covered(wide[:, 1], wide[:, 3], logits.shape[1])
    return _apart(probabilities.amax(1), columns) + _apart(probabilities.amax(2), rows)


def covered(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """How much of each pixel of a line a stretch of it covers.

    Args:
        start: Tensor of shape [stretches], fractions of the line.
        stop: Tensor of shape [stretches], likewise; a stretch that stops before it starts covers nothing.
        size: The pixels of the line.

    Returns:
        Tensor of shape [stretches, size], 0 to 1.

    >>> covered(torch.tensor([0.25]), torch.tensor([0.625]), 4)
    tensor([[0.0000, 1.0000, 0.5000, 0.0000]])
    """
    pixels = torch.arange(size, device=start.device, dtype=start.dtype)
    first = torch.maximum(pixels, size * start[:, None])
    last = torch.minimum(pixels + 1, size * stop[:, None])
    return (last - first).clamp(min=0)


def _apart(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(1) + y.square().sum(1)
    return 1 - 2 * (x * y).sum(1) / squares.clamp(min=torch.finfo(x.dtype).tiny)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 3 or logits.shape != targets.shape:
        found = f"{list(logits.shape)} and {list(targets.shape)}"
        raise UserError(f"masks: found shapes {found}; expected [masks, height, width] twice")
