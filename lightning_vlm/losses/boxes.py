"""How far boxes are from those that they should be, and which boxes of two sets belong together."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_vlm.errors import UserError

Overlap = Literal["iou", "giou", "diou", "ciou"]
"""The intersection over union of two boxes, and what has been made of it for boxes that are apart."""
THINNEST = 1e-6
"""A box that should be learned has no overlap if one of its sides is shorter: slopes would grow without end.
A pixel of a picture of 20,000 pixels is 50 times as wide, counted in fractions of the picture."""


def box_overlap(predicted: Tensor, target: Tensor, kind: Overlap = "giou") -> Tensor:
    """How well each box fits the one that it should be: 1 if they are the same, less the worse it is.

    - `iou`: intersection over union. It is 0 for all boxes that are apart, and then has no slope.
    - `giou`: less the share of the smallest box around both that neither fills (Rezatofighi et al. 2019,
      https://arxiv.org/abs/1902.09630), from -1 to 1.
    - `diou`: less the squared distance of the centres, over that of the corners of the box around both (Zheng
      et al. 2020, https://arxiv.org/abs/1911.08287).
    - `ciou`: less, beside that, the difference of the sides' ratios. Its factor has no gradient, as there.

    A box whose right or lower edge lies before the other is empty. Values and gradients are finite whatever
    the boxes are, as long as their numbers are: a box that should be learned and has no area (`THINNEST`)
    gives the constant 0, as nothing can overlap with it.

    Args:
        predicted: Tensor of shape [..., 4], floating-point: x1, y1, x2, y2 in any unit.
        target: Tensor of the same shape, likewise. No gradient flows to it.
        kind: Which of them.

    Returns:
        Tensor of shape [...], float32 (float64 for float64 boxes).

    Raises:
        UserError: There is no such kind, or the shapes aren't these.

    >>> box = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    >>> box_overlap(box, box), box_overlap(box, box + 0.5)
    (tensor([1.]), tensor([-0.5000]))
    """
    if kind not in get_args(Overlap):
        raise UserError(f"overlap: found {kind!r}; expected one of {', '.join(get_args(Overlap))}")
    if predicted.shape != target.shape or predicted.shape[-1] != 4:
        found = f"{list(predicted.shape)} and {list(target.shape)}"
        raise UserError(f"boxes: found shapes {found}; expected [..., 4] twice")
    predicted, target = _wide(predicted), _wide(target.detach())
    sides = target[..., 2:] - target[..., :2]
    has_area = (sides > THINNEST).all(-1)
    # Targets without area are replaced before the arithmetic, for 0 times infinity is NaN.
    unit = torch.cat((torch.zeros_like(sides), torch.ones_like(sides)), -1)
    target = torch.where(has_area[..., None], target, unit)
    return torch.where(has_area, _overlap(predicted, target, kind), 0)


def _wide(boxes: Tensor) -> Tensor:
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _overlap(predicted: Tensor, target: Tensor, kind: Overlap) -> Tensor:
    """As `box_overlap`, of targets that have an area."""
    own = (predicted[..., 2:] - predicted[..., :2]).clamp(min=0)
    sides = target[..., 2:] - target[..., :2]
    low = torch.maximum(predicted[..., :2], target[..., :2])
    high = torch.minimum(predicted[..., 2:], target[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    union = own.prod(-1) + sides.prod(-1) - both
    iou = both / union
    if kind == "iou":
        return iou
    # Around both, also where the predicted box is inverted.
    start = torch.minimum(torch.minimum(predicted[..., :2], predicted[..., 2:]), target[..., :2])
    stop = torch.maximum(torch.maximum(predicted[..., :2], predicted[..., 2:]), target[..., 2:])
    around = stop - start
    if kind == "giou":
        area = around.prod(-1)
        return iou - (area - union) / area
    centres = (predicted[..., :2] + predicted[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    diou = iou - centres.square().sum(-1) / around.square().sum(-1)
    if kind == "diou":
        return diou
    ratios = _angle(sides) - _angle(own)
    apart = 4 / math.pi**2 * ratios.square()
    with torch.no_grad():
        factor = apart / (1 - iou + apart).clamp(min=torch.finfo(apart.dtype).tiny)
    return diou - factor * apart


def _angle(sides: Tensor) -> Tensor:
    """The angle of a diagonal: a Tensor of shape [...] of sides [..., 2], with slopes that stay finite."""
    width, height = sides.clamp(min=THINNEST).unbind(-1)
    return torch.atan2(width, height)


def l1(predicted: Tensor, target: Tensor) -> Tensor:
    """The differences of numbers, added up: |Δx1| + |Δy1| + ...

    Args:
        predicted: Tensor of shape [..., numbers], floating-point.
        target: Tensor of the same shape; NaN where there is no number, as at the end of points among boxes.

    Returns:
        Tensor of shape [...], float32 (float64 for float64 numbers).

    >>> l1(torch.tensor([[0.0, 0.5, 7.0, 7.0]]), torch.tensor([[0.25, 0.25, torch.nan, torch.nan]]))
    tensor([0.5000])
    """
    known = ~target.isnan()
    differences = torch.where(known, _wide(predicted), 0) - torch.where(known, _wide(target.detach()), 0)
    return differences.abs().sum(-1)


def hungarian(scores: Tensor) -> list[tuple[int, int]]:
    """Which of two sets belong together, each with one at most, so that the scores of pairs are most in sum.

    It is the assignment problem (Kuhn 1955), solved exactly by scipy, on the host: for scores, not for
    training, where boxes differ only by their order in the answer.

    Args:
        scores: Tensor of shape [first, second], such as the IoU of each box with each; NaN counts as the
            worst of them.

    Returns:
        Pairs of a row and a column, in order of rows: as many as the smaller set has.

    >>> hungarian(torch.tensor([[0.9, 0.8], [0.7, 0.1]]))
    [(0, 1), (1, 0)]
    """
    from scipy.optimize import linear_sum_assignment  # takes a while to import, and training needs none of it

    table = scores.detach().double().cpu()
    known = table[~table.isnan()]
    worst = float(known.min()) if len(known) else 0.0
    rows, columns = linear_sum_assignment(table.nan_to_num(worst).numpy(), maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
