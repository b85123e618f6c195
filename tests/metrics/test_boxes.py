"""Scores of boxes against values by hand, brute force and pycocotools."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Point, Region
from lightning_vlm.metrics import boxes
from lightning_vlm.metrics.detection import detection_counts, mean_average_precision
from lightning_vlm.metrics.masks import overlap, rasterize

LEFT, RIGHT, ALL = Box((0, 0, 0.5, 1)), Box((0.5, 0, 1, 1)), Box((0, 0, 1, 1))
number = st.integers(0, 20).map(lambda value: value / 20)
box = st.builds(
    lambda x, y, label: Box((min(x), min(y), max(x), max(y)), label),
    st.tuples(number, number),
    st.tuples(number, number),
    st.sampled_from([None, "cat", "dog"]),
)
some = st.lists(box, max_size=4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
        ((0, 0, 2, 1), (1, 0, 3, 1), 1 / 3),
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),
        ((0, 0, 1, 1), (0.5, 0.5, 0.5, 0.5), 0),
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 1),
        ((1, 1, 0, 0), (0, 0, 1, 1), 0),
        ((math.nan, 0, 1, 1), (0, 0, 1, 1), 0),
    ],
)
def test_iou_by_hand(first, second, expected):
    assert boxes.iou(first, second) == pytest.approx(expected)


def test_boxes_too_many_and_too_few_count():
    assert boxes.accuracy_at(0.5, [LEFT], [LEFT, RIGHT]) == 0.5
    assert boxes.accuracy_at(0.5, [LEFT, RIGHT], [LEFT]) == 0.5
    assert boxes.mean_iou([LEFT, ALL], [LEFT]) == 0.5
    assert boxes.mean_iou([], [LEFT]) == 0
    assert boxes.accuracy_at(0.5, [ALL], [LEFT]) == 1, "exactly on the threshold"
    assert boxes.accuracy_at(0.75, [Box((0, 0, 0.3, 0.3))], [Box((0, 0, 0.3, 0.4))]) == 1, "but for rounding"


def test_the_best_assignment_is_not_the_greedy_one():
    # Greedily ALL would take its best fit, and leave nothing for the other.
    found = [Box((0, 0, 0.6, 1)), Box((0, 0, 0.9, 1))]
    right = [Box((0, 0, 0.8, 1)), Box((0, 0, 0.5, 1))]
    assert boxes.mean_iou(found, right) == pytest.approx((0.8 / 0.9 + 0.5 / 0.6) / 2)


def test_labels_count_where_there_are_several():
    cat, dog = Box((0, 0, 0.5, 1), "cat"), Box((0.5, 0, 1, 1), "dog")
    swapped = [Box(cat.xyxy, "dog"), Box(dog.xyxy, "cat")]
    assert boxes.mean_iou(swapped, [cat, dog]) == 0
    assert boxes.mean_iou([Box(cat.xyxy, " Cat"), Box(dog.xyxy)], [cat, dog]) == 1
    assert boxes.mean_iou([Box(cat.xyxy, "the red cat")], [cat]) == 1


def test_pictures_must_agree():
    assert boxes.mean_iou([Box(LEFT.xyxy, image=1)], [Box(LEFT.xyxy, image=0)]) == 0
    assert boxes.mean_iou([Box(LEFT.xyxy, image=1)], [Box(LEFT.xyxy)]) == 1


@settings(max_examples=60, deadline=None)
@given(some, some, st.randoms())
def test_order_never_counts_and_identity_is_one(found, right, random):
    shuffled, also = list(found), list(right)
    random.shuffle(shuffled)
    random.shuffle(also)
    assert boxes.mean_iou(shuffled, also) == pytest.approx(boxes.mean_iou(found, right))
    assert boxes.mean_iou(right, also) == pytest.approx(1)
    assert boxes.accuracy_at(0.5, right, also) == 1
    assert boxes.duplicates(shuffled) == boxes.duplicates(found) or len(found) > 2
    assert 0 <= boxes.mean_iou(found, right) <= 1 + 1e-12


@settings(max_examples=60, deadline=None)
@given(some, some)
def test_the_assignment_against_all_assignments(found, right):
    several = len({target.label for target in right}) > 1
    size = max(len(found), len(right))
    best = 0.0
    for chosen in itertools.permutations(range(size)):
        ious = [
            boxes.iou(found[row].xyxy, right[column].xyxy)
            for row, column in enumerate(chosen)
            if row < len(found)
            and column < len(right)
            and not (several and len({found[row].label, right[column].label} - {None}) > 1)
        ]
        best = max(best, sum(ious))
    assert boxes.mean_iou(found, right) == pytest.approx(best / size if size else 1)


points = st.lists(st.builds(Point, st.tuples(number, number)), max_size=4)


@settings(deadline=None)
@given(points, points, st.sampled_from([(200, 100), (64, 64), (30, 90)]))
def test_points_near_their_targets_against_all_orders(found, right, size):
    share = 0.21
    near = np.zeros((4, 4))
    for row, item in enumerate(found):
        for column, target in enumerate(right):
            off = (np.array(item.xy) - np.array(target.xy)) * size
            near[row, column] = np.linalg.norm(off) <= share * max(size) + 1e-9
    best = max(sum(near[range(4), order]) for order in map(list, itertools.permutations(range(4))))
    most = max(len(found), len(right))
    score = boxes.points_within(share, found, right, [View(size, size)])
    assert score == pytest.approx(best / most if most else 1.0)


def test_pointing():
    triangle = Region((0, 0, 1, 0, 0, 1))
    assert boxes.pointing_accuracy([Point((0.25, 0.5))], [LEFT]) == 1
    assert boxes.pointing_accuracy([Point((0.75, 0.5))], [LEFT]) == 0
    assert boxes.pointing_accuracy([Box((0.2, 0.2, 0.4, 0.4))], [LEFT]) == 1, "the centre of a box"
    assert boxes.pointing_accuracy([Point((0.75, 0.5)), Point((0.1, 0.5))], [LEFT, RIGHT]) == 1
    assert boxes.pointing_accuracy([Point((0.9, 0.9))], [triangle]) == 0, "in its bounds, not in it"
    assert boxes.pointing_accuracy([Point((0.1, 0.1))], [triangle]) == 1
    assert boxes.pointing_accuracy([Point((0.1, 0.1))], [Point((0.1, 0.1))]) is None


def test_duplicates():
    cat = Box((0, 0, 1, 1), "cat")
    assert boxes.duplicates([cat, cat, cat]) == 2
    assert boxes.duplicates([cat, Box(cat.xyxy, "dog"), Box(cat.xyxy, "cat", image=1)]) == 0
    assert boxes.duplicates([cat, Box((0, 0, 1, 0.9), "cat")]) == 0, "an IoU of 0.9 isn't above it"
    assert boxes.duplicates([cat, Box((0, 0, 1, 0.95), "Cat ")]) == 1


outline = st.lists(st.floats(-0.2, 1.2), min_size=6, max_size=12).filter(lambda values: len(values) % 2 == 0)


@settings(max_examples=40, deadline=None)
@given(outline)
def test_masks_against_matplotlib_on_outlines_without_crossings(values):
    # Around the centre by angle, an outline crosses itself nowhere: then both rules for crossings agree.
    points = np.array(values).reshape(-1, 2)
    middle = points.mean(0)
    angles = np.arctan2(*(points - middle).T[::-1])
    points = points[np.argsort(angles)]
    mask = rasterize(Region(tuple(points.flatten())), (23, 17))
    x, y = np.meshgrid((np.arange(23) + 0.5) / 23, (np.arange(17) + 0.5) / 17)
    centres = np.stack([x.ravel(), y.ravel()], 1)
    expected = Outline(np.vstack([points, points[:1]]), closed=True).contains_points(centres)
    inside = [boxes.contains(Region(tuple(points.flatten())), tuple(centre)) for centre in centres]
    assert (mask.ravel() == expected).mean() > 0.99, "but for centres on an edge"
    assert (mask.ravel() == inside).mean() > 0.99


def test_masks_by_hand():
    triangle = rasterize(Region((0, 0, 1, 0, 0, 1)), (100, 100))
    assert triangle.sum() == pytest.approx(5000, abs=60)
    bow_tie = Region((0, 0, 1, 1, 1, 0, 0, 1))
    assert rasterize(bow_tie, (100, 100)).sum() == pytest.approx(5000, abs=120)
    assert rasterize(Point((0.5, 0.5)), (4, 4)).sum() == 0


def test_overlap_of_masks():
    views = [View((200, 100), (10, 10)), View((8000, 4000), (10, 10))]
    assert overlap([LEFT], [ALL], views) == (10_000, 20_000)
    assert overlap([LEFT, RIGHT], [ALL], views) == (20_000, 20_000), "taken together"
    assert overlap([], [LEFT], views) == (0, 10_000)
    large = Box(LEFT.xyxy, image=1)
    both, either = overlap([large], [Box(ALL.xyxy, image=1)], views)
    assert (both, either) == (pytest.approx(16e6, rel=1e-3), pytest.approx(32e6, rel=1e-3))
    assert overlap([LEFT], [large], views).both == 0


def average_precision(images):
    total = Counter()
    for found, right in images:
        total.update(detection_counts(*([_box(*one) for one in side] for side in (found, right))))
    return mean_average_precision(total)


def _box(label, xyxy):
    return Box(tuple(value / 100 for value in xyxy), label, 0)


@pytest.mark.parametrize(
    ("images", "expected"),  # COCOeval of pycocotools 2.0.11, all scores 1, in an order where ties don't help
    [
        ([([("cat", (0, 0, 10, 10))], [("cat", (0, 0, 10, 10))])], 1.0),
        (
            [
                (
                    [("cat", (0, 0, 10, 10))],
                    [("cat", (0, 0, 10, 10)), ("cat", (20, 20, 50, 50)), ("dog", (1, 1, 9, 9))],
                ),
                ([("dog", (0, 0, 10, 8))], [("dog", (0, 0, 10, 10))]),
            ],
            0.4292079207920791,
        ),
        (
            [
                ([("cat", (60, 60, 90, 90))], []),
                (
                    [("cat", (0, 0, 10, 7)), ("cat", (20, 20, 50, 48))],
                    [("cat", (0, 0, 10, 10)), ("cat", (20, 20, 50, 50)), ("cat", (70, 70, 80, 80))],
                ),
            ],
            0.26600660066006604,
        ),
    ],
)
def test_mean_average_precision(images, expected):
    assert average_precision(images) == pytest.approx(expected)
    assert average_precision(images[::-1]) == pytest.approx(expected)


def test_labels_that_are_nowhere_and_boxes_without_a_label():
    cat = ("cat", (0, 0, 10, 10))
    assert average_precision([([cat, ("dog", (0, 0, 9, 9))], [cat])]) == 1
    assert average_precision([([(None, cat[1])], [cat])]) == 1
    assert average_precision([([cat], [(None, cat[1])])]) == 1
    assert average_precision([([cat], [])]) is None
    assert average_precision([([], [cat])]) == 0
