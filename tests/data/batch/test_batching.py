"""Batches of each mode: what they hold, for any ranks, workers and places to resume at."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lightning_vlm.data.batch import batching as module
from lightning_vlm.data.batch.batching import Batching
from lightning_vlm.data.batch.lengths import Lengths
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.conversation import Conversation, Conversations, Message, Text
from lightning_vlm.errors import UserError

SIZE = 90
MODES = {
    "padded": {},
    "length": {},
    "tokens": {"max_tokens": 300},
    "packed": {"max_tokens": 300, "max_patches": 600},
}


class Questions(Conversations):
    """Samples without content."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        turns = (Message("user", (Text("?"),)), Message("assistant", (Text("!"),)))
        return Conversation(turns, source=f"data.jsonl:{index + 1}")


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Lengths that are there, instead of those of a renderer."""
    rng = np.random.default_rng(0)
    tokens = np.exp(rng.uniform(2.3, 5.1, SIZE)).astype(np.int32)
    patches = (rng.integers(0, 5, SIZE) * 16).astype(np.int32)
    tokens[[5, 50]] = patches[[5, 50]] = 0
    monkeypatch.setattr(module, "measure", lambda *_: Lengths(tokens, patches))
    return Lengths(tokens, patches)


def made(mode, **changes):
    batching = Batching(mode, **{**MODES[mode], **changes})
    batching.measure(Questions(), "a renderer")
    return batching


def sampler(mode, rank=0, world=1, seed=0, shuffle=True, epoch=0, batch_size=4, **changes):
    found = made(mode, **changes).sampler(SIZE, batch_size, shuffle, seed, rank, world)
    found.set_epoch(epoch)
    return found


class Echo(Dataset):
    """A batch is its indices."""

    def __getitem__(self, indices):
        return torch.tensor(indices)


def loader(mode, workers=0, **options):
    return ResumableLoader(
        Echo(),
        sampler=sampler(mode, **options),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def listed(batches):
    return [list(map(int, batch)) for batch in batches]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_comes_once_and_ranks_have_equally_many_batches(mode, world):
    ranks = [listed(sampler(mode, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    members = [member for batches in ranks for batch in batches for member in batch if member >= 0]
    assert sorted(members) == list(range(SIZE))


@pytest.mark.parametrize("mode", ["length", "tokens", "packed"])
def test_ranks_see_together_what_one_sees_that_accumulates(mode):
    alone = listed(sampler(mode))
    for world in (2, 3):
        ranks = [listed(sampler(mode, rank, world)) for rank in range(world)]
        together = [batch for step in zip(*ranks, strict=True) for batch in step]
        assert together[: len(alone)] == alone
        assert not any(together[len(alone) :])
        counted = sampler(mode, 0, world)
        for steps in range(len(counted) + 1):
            assert counted.passed(steps) == sum(map(len, alone[: steps * world]))


@pytest.mark.parametrize("mode", ["length", "tokens", "packed"])
def test_epochs_have_equally_many_batches_in_another_order(mode):
    first, again, second = (listed(sampler(mode, epoch=epoch)) for epoch in (0, 0, 1))
    assert first == again != second
    assert len(first) == len(second)
    same_company = sorted(map(sorted, first)) == sorted(map(sorted, second))
    assert same_company == (mode != "length")
    assert listed(sampler(mode, seed=1)) != first
    fixed = listed(sampler(mode, shuffle=False))
    assert fixed == listed(sampler(mode, shuffle=False, epoch=1, seed=1))


def test_modes_fill_their_batches(measured):
    tokens = measured.tokens
    for batch in listed(sampler("packed")):
        assert tokens[batch].sum() <= 300
        assert measured.patches[batch].sum() <= 600
    for batch in listed(sampler("tokens")):
        assert tokens[batch].max() * (tokens[batch] > 0).sum() <= 300
    lengths = [tokens[batch] for batch in listed(sampler("length"))]
    padding = [len(batch) * batch.max() - batch.sum() for batch in lengths]
    assert sum(padding) < 0.1 * tokens.sum()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mode", ["length", "tokens", "packed"])
def test_resumed_anywhere_it_gives_exactly_the_rest(mode, workers):
    expected = {epoch: listed(loader(mode, epoch=epoch)) for epoch in (2, 3)}
    for seen in (1, 4, len(expected[2])) if workers else range(1, len(expected[2]) + 1):
        first = loader(mode, workers=workers, epoch=2)
        passing = iter(first)
        before = listed([next(passing) for _ in range(seen)])
        assert first.passed == sum(map(len, before))
        second = loader(mode, workers=workers)
        second.load_state_dict(first.state_dict())
        assert second.state_dict() == first.state_dict()
        second.sampler.set_epoch(2)
        whole = seen == len(expected[2])
        assert before + ([] if whole else listed(second)) == expected[2]
        second.sampler.set_epoch(3)
        assert listed(second) == expected[3]


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ({"mode": "padded"}, {"mode": "packed"}, "batching was padded, is packed; give"),
        ({"mode": "packed"}, {"mode": "padded"}, "batching was packed, is padded; give"),
        (
            {"mode": "packed"},
            {"mode": "tokens"},
            "batching was packed, is tokens; max_patches was 600, is None",
        ),
        ({"mode": "packed"}, {"mode": "packed", "max_tokens": 400}, "max_tokens was 300, is 400; give"),
        ({"mode": "packed"}, {"mode": "packed", "max_patches": None}, "max_patches was 600, is None; give"),
        ({"mode": "tokens"}, {"mode": "tokens", "seed": 1}, "seed was 0, is 1; give"),
        ({"mode": "length"}, {"mode": "length", "batch_size": 2}, "batch_size was 4, is 2; give"),
        ({"mode": "length"}, {"mode": "length", "shuffle": False}, "shuffle was 1, is 0; give"),
    ],
)
def test_other_batches_are_refused_in_the_middle_of_an_epoch_only(was, now, says):
    first = loader(**was)
    passing = iter(first)
    next(passing)
    with pytest.raises(UserError, match="middle of an epoch with other batches: " + says):
        loader(**now).load_state_dict(first.state_dict())
    list(passing)
    loader(**now).load_state_dict(first.state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, 2])
def test_any_number_of_ranks_goes_on_with_the_same_samples(mode, steps):
    """With 4 micro-batches in a step; the last step of the epoch has fewer."""
    expected = listed(loader(mode, epoch=2, batch_size=2))
    found = []
    state = None
    for world in (1, 2, 4, 1, 4):
        ranks = [loader(mode, rank=rank, world=world, batch_size=2) for rank in range(world)]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
                assert rank.state_dict() == state
            rank.sampler.set_epoch(2)
        left = None if len(found) > 4 * 3 * steps else steps * 4 // world
        passes = [listed(itertools.islice(rank, left)) for rank in ranks]
        found += [batch for step in zip(*passes, strict=True) for batch in step]
        state = ranks[0].state_dict()
        assert all(rank.state_dict() == state for rank in ranks)
    assert [batch for batch in found if batch and batch[0] >= 0] == expected
    assert state["position"] == state["end"]


@pytest.mark.parametrize(("mode", "unit"), [("padded", "samples"), ("packed", "batches")])
def test_a_position_inside_a_batch_is_refused(mode, unit):
    first = loader(mode, batch_size=1)
    next(iter(first))
    second = loader(mode, batch_size=1, world=2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=f"can't resume behind 1 {unit} of an epoch with 2 in the batches of"):
        next(iter(second))


def test_other_lengths_and_another_window_are_refused_as_well(measured, monkeypatch):
    first = loader("packed")
    next(iter(first))
    monkeypatch.setattr(module, "WINDOW", 64)
    with pytest.raises(UserError, match="other batches: window was 1024, is 64"):
        loader("packed").load_state_dict(first.state_dict())
    monkeypatch.undo()
    other = Lengths(measured.tokens + 1, measured.patches)
    monkeypatch.setattr(module, "measure", lambda *_: other)
    with pytest.raises(UserError, match=r"other batches: the checksum of all lengths was .*, is "):
        loader("packed").load_state_dict(first.state_dict())


def test_a_state_of_an_earlier_version_is_of_padded_batches():
    saved = {"epoch": 0, "seen": 4, "samples": SIZE, "samples a step": 4, "seed": 0, "shuffle": 1}
    loader("padded").load_state_dict(saved)
    with pytest.raises(UserError, match="batching was padded, is packed"):
        loader("packed").load_state_dict(saved)
    loader("packed").load_state_dict({**saved, "seen": 23})  # an epoch's end


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("packd",), r"data\.batching: found 'packd'; expected one of padded, length, tokens, packed"),
        (("packed",), r"data\.batching packed needs data\.max_tokens: the most tokens of a row, such as"),
        (("tokens",), r"data\.batching tokens needs data\.max_tokens: the most tokens of a batch, such as"),
        (("padded", 512), r"data\.max_tokens has no effect with data\.batching padded; set data\.batching"),
        (("length", None, 9), r"data\.max_patches has no effect with data\.batching length"),
        (("packed", 0), r"data\.max_tokens: found 0; expected a whole number, at least 1"),
        (("packed", "many"), r"data\.max_tokens: found 'many'; expected a whole number"),
        (("packed", 9, "auto"), r"data\.max_patches: found 'auto'; expected a whole number"),
    ],
)
def test_bad_settings_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        Batching(*options)


def test_a_sample_larger_than_a_batch_may_be_is_refused_by_name(measured):
    largest = int(measured.tokens.argmax())
    says = (
        rf"data\.max_tokens is 100, but data\.jsonl:{largest + 1} has {measured.tokens.max()} tokens "
        rf"\(\d+ others have more as well\); set it to {measured.tokens.max()} or more, or data\.max_length "
        "to 100, so that longer samples are cut"
    )
    for mode in ("tokens", "packed"):
        with pytest.raises(UserError, match=says):
            made(mode, max_tokens=100, max_patches=None)
    assert made("packed", max_tokens=int(measured.tokens.max()), max_patches=None)
    with pytest.raises(
        UserError, match=r"max_patches is 63, but data\.jsonl:\d+ has 64 patches .*max_pixels"
    ):
        made("packed", max_patches=63)


def test_a_number_that_is_to_be_measured_waits_for_it():
    batching = made("packed", max_tokens="auto", max_patches=None)
    with pytest.raises(UserError, match="max_tokens: found auto, which nothing measures here; give a number"):
        batching.batches(SIZE, 4, True, 0)
    batching.max_tokens = 300
    assert batching.batches(SIZE, 4, True, 0) == made("packed", max_patches=None).batches(SIZE, 4, True, 0)


def test_a_mode_that_another_falls_back_to_has_its_own_batches():
    batching = made("packed", max_patches=None)
    rows = batching.batches(SIZE, 4, True, 0)
    batching.mode = "tokens"
    assert batching.batches(SIZE, 4, True, 0) == made("tokens").batches(SIZE, 4, True, 0) > rows


def test_one_line_says_what_batches_there_are(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        for mode in MODES:
            batching = made(mode)
            batching.sampler(SIZE, 4, True, 0)
            batching.sampler(SIZE, 4, True, 0)
    said = [record.getMessage() for record in caplog.records]
    only = "; data.batch_size is for evaluation only"
    assert said == [
        "Batches: of similar length, 23 of 4 samples (4.7% padding instead of 46.3%)",
        f"Batches: by tokens, 22 of up to 300 tokens (10.6% padding, 4.0 samples a batch){only}",
        "Batches: packed, 17 rows of up to 300 tokens and 600 patches (98.3% filled, 5.2 samples a row)"
        + only,
    ]
