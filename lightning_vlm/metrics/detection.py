"""Mean average precision of COCO, for boxes without confidences."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_vlm.data.parts import Located, Point
from lightning_vlm.metrics.boxes import bounds, iou, label_of, reaches

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The IoUs from which a box counts as right: 0.5, 0.55, ..., 0.95."""
_RECALLS = np.linspace(0.0, 1.0, 101)


def detection_counts(found: Sequence[Located], right: Sequence[Located]) -> dict[str, float]:
    """What `mean_average_precision` needs of one answer; the counts of several add up.

    As in COCO, boxes take turns, and each takes the free right box of its label and picture that it overlaps
    most. Theirs is the order of confidence; here it is the order of writing. Points are left aside.

    >>> from lightning_vlm.data.parts import Box
    >>> counts = detection_counts([Box((0, 0, 1, 0.6), "cat")], [Box((0, 0, 1, 1), "cat")])
    >>> counts["given cat"], counts["there cat"], counts["hit 0.6 cat"], "hit 0.65 cat" in counts
    (1.0, 1.0, 1.0, False)
    """
    found = [item for item in found if not isinstance(item, Point)]
    right = [target for target in right if not isinstance(target, Point)]
    counts: Counter[str] = Counter()
    labels = _labels(found, right)
    counts.update(f"given {label}" for label in labels)
    counts.update(f"there {label_of(target) or ''}" for target in right)
    for threshold in THRESHOLDS:
        free = list(right)
        for item, label in zip(found, labels, strict=True):
            best = _best(item, label, free)
            if best is not None and reaches(iou(bounds(item), bounds(best)), threshold):
                free.remove(best)  # Of equal ones, which is taken makes no difference.
                counts[f"hit {threshold} {label}"] += 1
    return {name: float(number) for name, number in counts.items()}


def mean_average_precision(counts: Mapping[str, float]) -> float | None:
    """Mean average precision, COCO's AP@[.5:.95]: over labels, and over ten thresholds of the IoU.

    A model that writes boxes gives no confidences, so all have the same one. Precision and recall are then
    one point for each label, and its average precision is the precision, at as many of COCO's 101 recalls as
    the recall reaches. pycocotools puts equal confidences in the order of pictures, on which its result
    depends; this is never more than that, in whichever order they are. Unlike there, boxes beyond the
    hundredth of a picture count. As there, boxes of labels that are right nowhere are left out.

    Args:
        counts: Sums of `detection_counts`.

    Returns:
        0..1; None if there is no right box.
    """
    of_labels = []
    for name, there in counts.items():
        kind, _, label = name.partition(" ")
        if kind != "there":
            continue
        given = counts.get(f"given {label}", 0.0)
        for threshold in THRESHOLDS:
            hits = counts.get(f"hit {threshold} {label}", 0.0)
            reached = np.count_nonzero(hits / there >= _RECALLS) / len(_RECALLS)
            of_labels.append(hits / given * reached if given else 0.0)
    return float(np.mean(of_labels)) if of_labels else None


def _labels(found: Sequence[Located], right: Sequence[Located]) -> list[str]:
    """The label of each box that was given; without one, it is that of all right boxes if they agree."""
    of_right = {label_of(target) or "" for target in right}
    if of_right == {""}:
        return [""] * len(found)
    only = of_right.pop() if len(of_right) == 1 else ""
    return [label_of(item) or only for item in found]


def _best(item: Located, label: str, free: Sequence[Located]) -> Located | None:
    """The right box of a label that a box overlaps most, in the same picture."""
    fitting = [
        target
        for target in free
        if (label_of(target) or "") == label and len({item.image, target.image} - {None}) <= 1
    ]
    return max(fitting, key=lambda target: iou(bounds(item), bounds(target)), default=None)
