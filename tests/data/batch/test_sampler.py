"""Which samples share a batch, on one rank and on several."""

import itertools
import os

import pytest
import torch

from lightning_vlm.data.batch.sampler import PAD_INDEX, ResumableBatchSampler, in_order, ranks_of
from lightning_vlm.data.read.stream import Stream


@pytest.mark.parametrize(
    ("size", "batch_size", "world"), list(itertools.product((1, 7, 8, 23), (1, 4), (1, 2, 3)))
)
def test_each_index_comes_once_and_ranks_have_equally_many_batches(size, batch_size, world):
    ranks = [list(ResumableBatchSampler(size, batch_size, True, 3, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {
        len(ResumableBatchSampler(size, batch_size, True, 3, 0, world))
    }
    flat = [index for batches in ranks for batch in batches for index in batch if index != PAD_INDEX]
    assert sorted(flat) == list(range(size))
    assert {len(batch) for batches in ranks for batch in batches} == {batch_size}


def test_two_ranks_of_four_and_two_accumulated_see_what_one_of_eight_sees():
    whole = list(ResumableBatchSampler(37, 8, True, 1, 0, 1))
    ranks = [list(ResumableBatchSampler(37, 4, True, 1, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    half = [*ResumableBatchSampler(37, 4, True, 1, 0, 1)]
    accumulated = [[*itertools.chain(*half[i : i + 2])] for i in range(0, len(half), 2)]
    assert accumulated[:-1] == whole[:-1]
    assert set(accumulated[-1]) == set(whole[-1])


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, shuffle=True):
        batches = ResumableBatchSampler(40, 4, shuffle, seed, 0, 1)
        batches.set_epoch(epoch)
        torch.manual_seed(seed + epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0, False) == order(1, 1, False) == [list(range(i, i + 4)) for i in range(0, 40, 4)]


def test_the_order_is_that_of_earlier_versions():
    """Their checkpoints go on in the middle of an epoch."""
    batches = ResumableBatchSampler(10, 10, True, 3, 0, 1)
    batches.set_epoch(2)
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(3_000_011))
    assert list(batches) == [expected.tolist()]


def test_epochs_are_counted_from_the_first_of_a_stage():
    batches = ResumableBatchSampler(40, 4, True, 0, 0, 1)
    batches.set_epoch(1)
    second = list(batches)
    batches.first_epoch = 3
    batches.set_epoch(4)
    assert list(batches) == second


def test_data_that_change_with_time_have_an_index_for_each_stretch():
    """Three epochs of 6 samples in 2 stretches: sample i is i, i + 6, … i + 30; padding stays what it is."""
    batches = ResumableBatchSampler(6, 4, False, 0, 0, 1)
    batches.times = 2
    found = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        found += [index for batch in batches for index in batch]
    expected = [[0, 1, 2, 9, 10, 11], [12, 13, 14, 21, 22, 23], [24, 25, 26, 33, 34, 35]]
    assert found == [index for epoch in expected for index in [*epoch, PAD_INDEX, PAD_INDEX]]
    assert batches.at_time(PAD_INDEX, 0) == PAD_INDEX
    assert batches.at_time(1, 7) == 1 + 6 * 5, (
        "an epoch that draws more often than once ends in its last stretch"
    )


def test_without_a_trainer_there_is_one_rank():
    assert ranks_of(None) == (0, 1)


def test_what_is_only_scored_comes_in_its_order():
    assert list(in_order(None, range(5), 2, 7, 0, 1)) == [[0, 1], [2, 3], [4, PAD_INDEX]]


def test_a_stream_comes_in_its_order_to_one_process():
    reads, writes = os.pipe()
    with open(writes, "w") as lines:
        lines.write("a.png\nb.png\nc.png\n")
    stream = Stream(prompt="What is it?", descriptor=reads)
    batches = in_order(stream, stream, 2, 7, 1, 3)
    assert (batches.num_replicas, batches.rank, batches.global_batch_size) == (1, 0, 2)
    assert list(batches) == [[1, 2], [3]]  # numbers of lines
    os.close(reads)
