"""Orders that are mixed in windows."""

import itertools

import numpy as np
import pytest
import torch

from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.task_passes import TaskPasses
from lightning_vlm.data.batch.window_sampler import WindowSampler
from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.conversation import TaskTable


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
def test_every_sample_comes_once_and_windows_are_as_large_as_asked(window):
    windows = Windows.of_rows([5] * 20 + [3], window)
    order = windows.order(0)
    assert len(order) == len(windows) == 103
    assert sorted(order) == list(range(103))
    *full, last = order.window_sizes
    assert all(window <= size < window + 5 for size in full)
    assert 0 < last < window + 5
    assert list(order) != list(range(103))
    assert list(order) == list(windows.order(0)) != list(windows.order(1))


def test_a_window_has_whole_blocks_and_mixes_their_samples():
    order = Windows.of_rows([10] * 30, window=50).order(4)
    places = itertools.accumulate(order.window_sizes, initial=0)
    for start, stop in itertools.pairwise(places):
        samples = order.between(start, stop).tolist()
        assert samples == [order[place] for place in range(start, stop)]
        assert {sample // 10: 0 for sample in samples}.keys() == {block // 10 for block in samples}
        assert len({sample // 10 for sample in samples}) == 5
        neighbours = [abs(one - two) == 1 for one, two in itertools.pairwise(samples)]
        assert sum(neighbours) < 15  # blocks aren't read through one after the other


def test_a_place_is_known_without_those_before_it():
    windows = Windows.of_rows([64] * 1000, window=640)
    whole = list(windows.order("a", 3))
    late = windows.order("a", 3)
    assert late[60_000] == whole[60_000]
    assert len(late._known) == 1


def test_windows_hold_no_more_than_their_bytes():
    sizes = [100 << 20] * 6 + [300 << 20]
    windows = Windows.of_rows([10] * 7, window=10_000, sizes=sizes)
    order = windows.order(0)
    for start, size in zip(itertools.accumulate([0, *order.window_sizes]), order.window_sizes, strict=False):
        blocks = {sample // 10 for sample in order.between(start, start + size).tolist()}
        assert sum(sizes[block] for block in blocks) <= 256 << 20 or len(blocks) == 1
        assert len(blocks) <= windows.most_blocks


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_order_of_one(shuffle):
    windows = Windows.of_rows([4] * 9 + [1], window=12)

    def batches(size, rank, world):
        return list(WindowSampler(windows, size, shuffle, 3, rank, world))

    one = [index for batch in batches(8, 0, 1) for index in batch]
    for world in (2, 4):
        ranks = [batches(8 // world, rank, world) for rank in range(world)]
        together = [index for step in zip(*ranks, strict=True) for batch in step for index in batch]
        assert together == one
    assert sorted(index for index in one if index != PAD_INDEX) == list(range(37))


def test_tasks_have_windows_of_their_own():
    """Each pass over a task has all of its samples once, and only its own, mixed in half a window."""
    windows = Windows.of_rows([4] * 10, window=16)
    table = TaskTable.of_samples(["vqa"] * 24 + ["ocr"] * 16)
    passes = TaskPasses(table, True, 0, windows)
    tasks = torch.tensor([0, 1] * 24)
    dealt = passes.deal(tasks, [0, 0])
    assert sorted(dealt[tasks == 0].tolist()) == list(range(24))
    assert sorted(dealt[tasks == 1][:16].tolist()) == list(range(24, 40))
    assert len({index // 4 for index in dealt[tasks == 0][:8].tolist()}) == 2
    parts = [passes.deal(tasks[start : start + 6], [start // 2] * 2) for start in range(0, 48, 6)]
    assert torch.cat(parts).equal(dealt)


def test_mixing_is_near_that_of_a_full_shuffle():
    """Of data sorted by class, windows of 10,000 rows of blocks of 64 have classes in nearly their shares."""
    windows = Windows.of_rows([64] * 1563, window=10_000)
    order = windows.order(0)
    classes = np.array(list(order)) * 4 // len(windows)
    shares = [np.mean(classes[start : start + 10_000] == 0) for start in range(0, 90_000, 10_000)]
    assert np.std(shares) < 0.06
