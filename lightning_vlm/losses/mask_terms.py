"""The loss of the masks of a batch, by those of `masks.py`, and the weights of their tokens."""

import torch
from torch import Tensor

from lightning_vlm.losses.masks import box_projection_loss, dice_loss, mask_cross_entropy


def mask_losses(
    logits: Tensor, targets: Tensor, is_box: Tensor, bce: float, dice: float, consistency: float
) -> Tensor:
    """The loss of each mask: the sum of these by their weights.

    Args:
        logits: Tensor of shape [masks, height, width].
        targets: Tensor of the same shape, 0 or 1.
        is_box: Tensor of shape [masks]: 1 where only a box is known, so that pixels say nothing.
        bce: The weight of `mask_cross_entropy`.
        dice: The weight of `dice_loss`.
        consistency: The weight of `box_projection_loss`, by the box around each target.

    Returns:
        Tensor of shape [masks].
    """
    shadows = box_projection_loss(logits, boxes_around(targets))
    known = 1 - is_box.to(shadows.dtype)
    of_pixels = bce * mask_cross_entropy(logits, targets) + dice * dice_loss(logits, targets)
    return known * of_pixels + consistency * shadows


def boxes_around(masks: Tensor) -> Tensor:
    """The box around each mask.

    Args:
        masks: Tensor of shape [masks, height, width], 0 or 1.

    Returns:
        Tensor of shape [masks, 4], float32: x1, y1, x2, y2 in fractions; zeros for an empty mask.

    >>> boxes_around(torch.tensor([[[0, 1, 0, 0], [0, 1, 1, 0]]]))
    tensor([[0.2500, 0.0000, 0.7500, 1.0000]])
    >>> boxes_around(torch.zeros(1, 2, 4))
    tensor([[0., 0., 0., 0.]])
    """
    edges = []
    for shadow in (masks.amax(1), masks.amax(2)):
        size = shadow.shape[1]
        first, behind = shadow.argmax(1), size - shadow.flip(1).argmax(1)
        edges.append(torch.stack((first, behind), 1) * shadow.amax(1, keepdim=True) / size)
    (x1, x2), (y1, y2) = edges[0].unbind(1), edges[1].unbind(1)
    return torch.stack((x1, y1, x2, y2), 1)


def weights_at(positions: Tensor, weights: Tensor, places: Tensor, size: int) -> Tensor:
    """The weights of tokens that are learned; 0 of others.

    Args:
        positions: Tensor of shape [targets], int64: where each target is predicted, in the flattened batch.
        weights: Tensor of shape [targets].
        places: Tensor of shape [tokens], int64: where the tokens stand, each one behind its prediction.
        size: Of the flattened batch.
    """
    of_all = weights.new_zeros(size).index_copy(0, positions, weights)
    return of_all.index_select(0, places - 1)
