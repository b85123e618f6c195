"""How well boxes, points and regions fit the right ones. Order never counts.

Two things can only fit if they lie in the same picture. Where the right answer has several different labels,
labels must agree too, but for case and space around them. A thing without a label agrees with any, as one
without a picture does.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Located, Point, Region
from lightning_vlm.losses.boxes import hungarian

XYXY: TypeAlias = tuple[float, float, float, float]
Items: TypeAlias = Sequence[Located]
SAME = 0.9
"""Boxes of one label that overlap by more are one box, given twice."""
_ROUNDING = 1e-9


def iou(first: XYXY, second: XYXY) -> float:
    """The intersection over union of two boxes: 1 if they are the same, 0 if they are apart.

    A box whose right or lower edge lies before the other is empty. Two boxes without any area overlap fully
    if they are the same, else not at all.

    >>> round(iou((0, 0, 2, 2), (1, 1, 3, 3)), 4), iou((0, 0, 1, 1), (1, 1, 2, 2))
    (0.1429, 0.0)
    """
    both = _area(
        (
            max(first[0], second[0]),
            max(first[1], second[1]),
            min(first[2], second[2]),
            min(first[3], second[3]),
        )
    )
    union = _area(first) + _area(second) - both
    if not union > 0:
        return float(first == second)
    return both / union


def _area(box: XYXY) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def bounds(item: Located) -> XYXY:
    """The smallest box around a box, a point or a region.

    >>> bounds(Region((0.1, 0.2, 0.5, 0.3, 0.2, 0.9)))
    (0.1, 0.2, 0.5, 0.9)
    """
    if isinstance(item, Box):
        return item.xyxy
    across, down = item.numbers[0::2], item.numbers[1::2]
    return min(across), min(down), max(across), max(down)


def matched_ious(found: Items, right: Items) -> list[float]:
    """The IoU of each pair of two sets, matched so that they are most in sum (the Hungarian method).

    Args:
        found: What a model gave. Regions count as the boxes around them, and points as boxes without area.
        right: What is right.

    Returns:
        As many as the larger set has: what has no partner has 0.

    >>> left, right = Box((0, 0, 0.5, 1)), Box((0.5, 0, 1, 1))
    >>> matched_ious([right, left], [left, right]), matched_ious([left, right], [left])
    ([1.0, 1.0], [1.0, 0.0])
    """
    return _matched(found, right, lambda item, target: iou(bounds(item), bounds(target)))


def accuracy_at(threshold: float, found: Items, right: Items) -> float:
    """The share of boxes that are right: matched with an IoU of at least the threshold.

    It is Acc@0.5 of referring expressions where there is one right box and one given. Of several, what is
    missed counts as wrong, and so does each box too many: the share is that of the larger set.

    >>> accuracy_at(0.5, [Box((0, 0, 0.5, 1))], [Box((0, 0, 0.5, 0.9)), Box((0.6, 0, 1, 1))])
    0.5
    """
    ious = matched_ious(found, right)
    return sum(reaches(value, threshold) for value in ious) / len(ious) if ious else 1.0


def reaches(value: float, threshold: float) -> bool:
    """Whether an IoU is at least a threshold, but for rounding: fractions of a picture are inexact."""
    return value >= threshold - _ROUNDING


def mean_iou(found: Items, right: Items) -> float:
    """The mean IoU of matched boxes, over the larger set, so that missed boxes and those too many have 0."""
    ious = matched_ious(found, right)
    return math.fsum(ious) / len(ious) if ious else 1.0


def pointing_accuracy(found: Items, right: Items) -> float | None:
    """The share of points that lie in what they should point at, over the larger of both sets.

    Args:
        found: Points; of a box or a region, its centre.
        right: Boxes or regions. An edge belongs to its box.

    Returns:
        None if a right one is a point, in which nothing can lie.

    >>> pointing_accuracy([Point((0.2, 0.2))], [Box((0, 0, 0.5, 0.5))])
    1.0
    """
    if any(isinstance(target, Point) for target in right):
        return None
    hits = _matched(found, right, lambda item, target: float(contains(target, _centre(item))))
    return sum(hits) / len(hits) if hits else 1.0


def points_within(share: float, found: Items, right: Items, views: Sequence[View]) -> float:
    """The share of points no further off than a share of the picture's larger side: PCK, over the larger set.

    The percentage of correct keypoints of https://doi.org/10.1109/TPAMI.2012.261 (Yang and Ramanan), with
    the picture in place of the person's box.

    Args:
        share: The largest distance, as a share of the larger side.
        found: Points; of a box or a region, its centre.
        right: Points.
        views: How large each picture is; one that isn't there counts as square.

    >>> points_within(0.05, [Point((0.2, 0.2))], [Point((0.2, 0.28))], [View((200, 100), (200, 100))])
    1.0
    """

    def hits(item: Located, target: Located) -> float:
        image = target.image or 0
        width, height = views[image].size if image < len(views) else (1, 1)
        (x, y), (right_x, right_y) = _centre(item), _centre(target)
        off = math.hypot((x - right_x) * width, (y - right_y) * height)
        return float(off <= (share + _ROUNDING) * max(width, height))

    near = _matched(found, right, hits)
    return sum(near) / len(near) if near else 1.0


def contains(area: Located, point: tuple[float, float]) -> bool:
    """Whether a point lies in a box, or in a region by the even-odd rule.

    >>> contains(Region((0, 0, 1, 0, 0, 1)), (0.2, 0.2)), contains(Region((0, 0, 1, 0, 0, 1)), (0.9, 0.9))
    (True, False)
    """
    x, y = point
    if not isinstance(area, Region):
        x1, y1, x2, y2 = bounds(area)
        return x1 <= x <= x2 and y1 <= y <= y2
    corners = list(zip(area.outline[0::2], area.outline[1::2], strict=True))
    inside = False
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (ay > y) != (by > y):
            crossing = ax + (y - ay) / (by - ay) * (bx - ax)
            inside ^= x < crossing
    return inside


def duplicates(items: Items) -> int:
    """How many of some boxes repeat an earlier one: the same label, and an IoU above 0.9.

    >>> duplicates([Box((0, 0, 1, 1), "cat"), Box((0, 0, 1, 0.95), "cat"), Box((0, 0, 1, 1), "dog")])
    1
    """
    kept: list[Located] = []
    for item in items:
        if not any(_is_same(item, earlier) for earlier in kept):
            kept.append(item)
    return len(items) - len(kept)


def _is_same(item: Located, other: Located) -> bool:
    is_alike = type(item) is type(other) and item.image == other.image
    return (
        is_alike and label_of(item) == label_of(other) and iou(bounds(item), bounds(other)) > SAME + _ROUNDING
    )


def label_of(item: Located) -> str | None:
    """A label as labels are compared: without case, and space around it."""
    return None if item.label is None else item.label.strip().casefold()


def _centre(item: Located) -> tuple[float, float]:
    x1, y1, x2, y2 = bounds(item)
    return (x1 + x2) / 2, (y1 + y2) / 2


def _matched(found: Items, right: Items, fit: Callable[[Located, Located], float]) -> list[float]:
    """How well pairs fit, 0..1, matched to be most in sum; as many as the larger set has."""
    labels_count = len({label_of(target) for target in right}) > 1
    table = torch.zeros(len(found), len(right), dtype=torch.float64)
    for row, item in enumerate(found):
        for column, target in enumerate(right):
            if may_fit(item, target, labels_count):
                table[row, column] = fit(item, target)
    values = [float(table[pair]) for pair in hungarian(table)] if table.numel() else []
    return values + [0.0] * (max(table.shape) - len(values))


def may_fit(item: Located, target: Located, labels_count: bool) -> bool:
    """Whether two things are of one picture, and of one label where labels count."""
    pictures = {item.image, target.image} - {None}
    labels = {label_of(item), label_of(target)} - {None}
    return len(pictures) <= 1 and not (labels_count and len(labels) > 1)
