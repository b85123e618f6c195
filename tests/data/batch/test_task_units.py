"""Batches of fitting lengths whose samples are drawn by task."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lightning_vlm.data.batch import batching as module
from lightning_vlm.data.batch.batching import Batching
from lightning_vlm.data.batch.batching_checks import check_sampling
from lightning_vlm.data.batch.lengths import Lengths
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.conversation import TaskTable
from lightning_vlm.errors import UserError

SIZE = 400
TABLE = TaskTable.of_samples(["ocr" if index % 8 == 0 else "vqa" for index in range(SIZE)])
UNIFORM = TaskSampling.read("uniform")
MODES = {"length": {}, "tokens": {"max_tokens": 300}, "packed": {"max_tokens": 300}}


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    tokens = np.exp(np.random.default_rng(0).uniform(2.3, 5.1, SIZE)).astype(np.int32)
    tokens[[5, 50]] = 0
    lengths = Lengths(tokens, np.zeros_like(tokens))
    monkeypatch.setattr(module, "measure", lambda *_: lengths)
    monkeypatch.setattr(module, "WINDOW", 64)
    return lengths


def sampler(mode, sampling=UNIFORM, rank=0, world=1, epoch=0, seed=0, shuffle=True):
    batching = Batching(mode, **MODES[mode])
    batching.measure([], "a renderer")
    made = batching.sampler(SIZE, 4, shuffle, seed, rank, world, by_task=(TABLE, sampling))
    made.set_epoch(epoch)
    return made


class Echo(Dataset):
    """A batch is its indices."""

    def __getitem__(self, indices):
        return torch.tensor(indices)


def loader(mode, workers=0, **options):
    return ResumableLoader(Echo(), sampler=sampler(mode, **options), batch_size=None, num_workers=workers)


def listed(batches):
    return [list(map(int, batch)) for batch in batches]


def members(mode, epochs, **options):
    made = sampler(mode, **options)
    for epoch in range(epochs):
        made.set_epoch(epoch)
        for batch in made:
            yield from batch


@pytest.mark.parametrize("mode", MODES)
def test_batches_hold_what_fits_and_epochs_have_as_many_as_without_tasks(mode, measured):
    made = sampler(mode)
    batching = Batching(mode, **MODES[mode])
    batching.measure([], "a renderer")
    assert len(made) == batching.batches(SIZE, 4, True, 0)
    for batch in made:
        tokens = measured.tokens[batch]
        if mode == "length":
            assert len(batch) == 4
        elif mode == "packed":
            assert tokens.sum() <= 300
        else:
            assert tokens.max() * (tokens > 0).sum() <= 300
    tokens = [measured.tokens[batch].sum() for batch in made]
    assert mode == "length" or sum(tokens) > 0.8 * 300 * len(tokens)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("sampling", "share"),
    [
        (UNIFORM, 0.5),
        (TaskSampling(), 1 / 8),
        (TaskSampling(score="weights", weights={"ocr": 3, "vqa": 1}), 0.75),
        (TaskSampling(score="weights", weights={"ocr": 0, "vqa": 1}), 0.0),
    ],
)
def test_tasks_come_with_their_probabilities_and_short_samples_no_more_often(mode, sampling, share, measured):
    drawn = np.array(list(members(mode, 12, sampling=sampling)))
    assert abs((drawn % 8 == 0).mean() - share) < 0.04
    if sampling == TaskSampling():  # as often as in the data, so lengths are as in the data as well
        assert abs(measured.tokens[drawn].mean() / measured.tokens.mean() - 1) < 0.03


@pytest.mark.parametrize("mode", MODES)
def test_within_a_task_no_sample_comes_again_before_all_others(mode):
    """But for the last window, of which some batches have not come yet, and some samples came twice."""
    counts = Counter(members(mode, 8, sampling=TaskSampling()))
    of_a_task = [counts[index] for index in range(SIZE) if index % 8]
    assert max(of_a_task) - min(of_a_task) <= 3


@pytest.mark.parametrize("mode", MODES)
def test_ranks_see_together_what_one_sees_that_accumulates(mode):
    for epoch in (0, 2):
        alone = listed(sampler(mode, epoch=epoch))
        ranks = [listed(sampler(mode, rank=rank, world=2, epoch=epoch)) for rank in range(2)]
        together = [batch for step in zip(*ranks, strict=True) for batch in step]
        assert together[: len(alone)] == alone
        assert not any(together[len(alone) :])
    assert listed(sampler(mode, seed=1)) != listed(sampler(mode))


def test_what_comes_depends_on_seed_and_epoch_alone():
    made = sampler("packed")
    epochs = []
    for epoch in range(4):
        made.set_epoch(epoch)
        epochs.append(listed(made))
    assert len({str(batches) for batches in epochs}) == 4
    made.set_epoch(1)  # and back
    assert listed(made) == epochs[1] == listed(sampler("packed", epoch=1))
    assert made.samples(7) == sampler("packed", epoch=1).samples(7)
    assert listed(sampler("packed", epoch=3)) == epochs[3]
    assert [member for batch in listed(sampler("packed", shuffle=False)) for member in batch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_resumed_it_draws_exactly_the_rest(mode, workers):
    expected = {epoch: listed(loader(mode, epoch=epoch)) for epoch in (2, 3)}
    first = loader(mode, workers, epoch=2)
    passing = iter(first)
    before = listed([next(passing) for _ in range(5)])
    second = loader(mode, workers)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(2)
    assert before + listed(second) == expected[2]
    second.sampler.set_epoch(3)
    assert listed(second) == expected[3]
    with pytest.raises(UserError, match="middle of an epoch with other batches: sampling was TaskSampling"):
        loader(mode, sampling=TaskSampling()).load_state_dict(first.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_it_counts_what_was_drawn_of_each_task(mode):
    made = sampler(mode)
    drawn = []
    for epoch in range(3):
        made.set_epoch(epoch)
        for step, batch in enumerate(made, 1):
            drawn += batch
            if step == 7:
                ocr = sum(member % 8 == 0 for member in drawn)
                assert made.samples(made.passed(step)) == {"ocr": ocr, "vqa": len(drawn) - ocr}
                assert made.metrics(made.passed(step))["data/epochs/ocr"] == ocr / 50
    assert made.summary(made.passed(len(made))).startswith("Epochs of each task: ocr ")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (TaskSampling(score="hard"), r"data\.sampling\.score hard changes what is drawn as training goes on"),
        (TaskSampling(grouped=True), r"data\.sampling grouped makes batches of one task, and"),
    ],
)
def test_what_lengths_cannot_go_together_with_is_refused(mode, sampling, says):
    with pytest.raises(UserError, match=says):
        check_sampling(mode, sampling)
    check_sampling(mode, UNIFORM)
    check_sampling("padded", sampling)
