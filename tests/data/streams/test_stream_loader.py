"""Streams through the loader: each sample once, the same order however the work is split, exact resume."""

import itertools
from collections import Counter

import PIL.Image
import pytest
from torch.utils.data import Dataset

from lightning_vlm import VLMDataModule
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.window_sampler import WindowSampler
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.streams.source import Shards
from lightning_vlm.errors import DataError, UserError
from tests.support.shards import KINDS, write_shard

ROWS = 37


class Sources(Dataset):
    """Where the samples of a batch lie, each of which is read."""

    def __init__(self, source):
        self._source = source

    def __getitem__(self, indices):
        return [self._source[index].source for index in indices if index != PAD_INDEX]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Patterns of three shards of each kind."""
    folder = tmp_path_factory.mktemp("shards")
    bounds = (0, 11, 12, ROWS)
    for kind in KINDS:
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            write_shard(folder / f"{number}.{kind}", range(start, stop))
    return {kind: f"{folder}/*.{kind}" for kind in KINDS}


def loader(source, batch_size, rank=0, world=1, workers=0):
    sampler = WindowSampler(source.windows, batch_size, True, 5, rank, world)
    return ResumableLoader(Sources(source), sampler=sampler, batch_size=None, num_workers=workers)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_comes_once_in_one_order_however_work_is_split(shards, kind):
    source = Shards(shards[kind], streaming=Streaming(shuffle_window=10))
    whole = [name for batch in loader(source, 8) for name in batch]
    assert len(set(whole)) == len(whole) == ROWS
    for world, workers in ((1, 2), (2, 0), (2, 2), (4, 0), (4, 2)):
        if workers and kind in ("jsonl", "arrow") and world > 1:
            continue  # the processes of other kinds hold more
        ranks = [list(loader(source, 8 // world, rank, world, workers)) for rank in range(world)]
        split = [name for step in zip(*ranks, strict=True) for batch in step for name in batch]
        assert split == whole


def open_data(pattern, processor, **options):
    given = {"streaming": {"shuffle_window": 10}, "batch_size": 4, **options}
    return VLMDataModule(train=pattern, processor=processor, **given)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_resumed_epoch_goes_on_without_reading_what_was_passed(shards, kind, processor_of, monkeypatch):
    processor = processor_of("llava", "plain")
    whole = list(open_data(shards[kind], processor).train_dataloader())
    first = open_data(shards[kind], processor).train_dataloader()
    batches = iter(first)
    for _ in range(6):
        next(batches)
    state = first.state_dict()
    data = open_data(shards[kind], processor)
    data.setup("fit")
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    counts = Counter()

    def counted(name, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(Shards, "_read", counted("rows", Shards._read))
    monkeypatch.setattr(PIL.Image, "open", counted("pictures", PIL.Image.open))
    rest = list(resumed)
    assert [batch.places for batch in rest] == [batch.places for batch in whole[6:]]
    for one, two in zip(rest, whole[6:], strict=True):
        assert all(one.inputs[name].equal(two.inputs[name]) for name in one.inputs)
    assert counts == {"rows": ROWS - 24, "pictures": ROWS - 24}


def test_other_shards_or_windows_are_no_resume(shards, processor_of, tmp_path):
    processor = processor_of("llava", "plain")
    begun = open_data(shards["tar"], processor).train_dataloader()
    next(iter(begun))
    state = begun.state_dict()
    wider = open_data(shards["tar"], processor, streaming={"shuffle_window": 11}).train_dataloader()
    with pytest.raises(UserError, match=r"shuffle_window was 10, is 11"):
        wider.load_state_dict(state)
    write_shard(tmp_path / "0.tar", range(ROWS))
    with pytest.raises(UserError, match="the checksum of all shards was"):
        open_data(f"{tmp_path}/*.tar", processor).train_dataloader().load_state_dict(state)


def test_tasks_are_mixed_where_shards_have_them(tmp_path, processor_of):
    write_shard(tmp_path / "vqa.parquet", range(60))
    write_shard(tmp_path / "ocr.parquet", range(60, 70))
    tasks = {"tasks": {"vqa": "vqa*", "ocr": "ocr*"}}
    mixed = {"sampling": {"score": "weights", "weights": {"vqa": 1, "ocr": 3}}, "streaming": tasks}
    pattern = f"{tmp_path}/{{vqa,ocr}}.parquet"
    data = open_data(pattern, processor_of("llava", "plain"), **mixed)
    data.setup("fit")
    batches = data.train_dataloader().sampler
    drawn = [index for batch in batches for index in batch if index != PAD_INDEX]
    assert len(drawn) == 70  # of which about 52 are of ocr, each 5 times, and 18 of vqa
    counts = Counter(index >= 60 for index in drawn)
    assert 40 <= counts[True] <= 62
    assert max(Counter(index for index in drawn if index < 60).values()) == 1
    of_ocr = Counter(index for index in drawn if index >= 60)
    assert max(of_ocr.values()) - min(of_ocr[index] for index in range(60, 70)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "uniform"}, r"data.sampling: found no task of samples .*streaming: \{tasks: "),
        ({"batching": "packed", "max_tokens": 512}, "data.batching: found packed, for which all samples"),
        ({"batching": "length"}, "data.batching: found length, for which all samples"),
        ({"val": "10%"}, "data.val: found 10%, but to hold samples out .*; give data.val shards of its own"),
        ({"negatives": True}, "data.negatives: to know what isn't in pictures"),
        ({"skip": "left-out.txt"}, "data.skip: lists of rows are for files that are read as a whole"),
        ({"streaming": None}, r"data.train: found .*, which names shards; .*data.streaming: true"),
        ({"train": "pets.csv"}, "data.train: found pets.csv, which can't be streamed; expected shards"),
    ],
)
def test_what_needs_all_samples_is_refused(shards, processor_of, options, message):
    pattern = options.pop("train", shards["tar"])
    with pytest.raises(UserError, match=message):
        open_data(pattern, processor_of("llava", "plain"), **options).setup("fit")


def test_a_bad_row_raises_or_is_skipped_and_counted(tmp_path, processor_of):
    path = write_shard(tmp_path / "a.jsonl", range(1000))
    with open(path) as file:
        lines = file.read().splitlines()
    lines[500] = '{"question": "What?", "answer": '
    with open(path, "w") as file:
        file.write("\n".join(lines))
    for fate in ("raise", "skip"):
        options = {"on_bad_sample": fate, "shuffle": False}
        data = open_data(path, processor_of("llava", "plain"), **options)
        data.setup("fit")
        batch = data.rendered("train", learn=True, prompts=False)[[499, 500, 501]]
        assert [error.source for error in batch.skipped] == [f"{path}:501"]
        assert batch.places == (499, 501)
        if fate == "raise":
            with pytest.raises(DataError, match=r"a\.jsonl:501: column 32: found broken JSON"):
                data.on_before_batch_transfer(batch, 0)
        else:
            data.on_before_batch_transfer(batch, 0)
            assert list(data.report.skipped) == [f"{path}:501"]
