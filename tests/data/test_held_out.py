"""`data.val: 10%`: a share of the training data that is held out."""

import itertools
import json
import random
from pathlib import Path

import pytest

from lightning_vlm.data.conversation import Chain
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.held_out import held_out
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.splits import Splits
from lightning_vlm.errors import DataError, UserError


def rows(pictures, each=3, tasks=("vqa",)):
    """Questions about pictures, several about each."""
    made = []
    for picture in range(pictures):
        for number in range(each):
            row = {"question": f"{number}?", "answer": f"{picture}", "image": f"{picture}.png"}
            made.append(row | {"task": tasks[picture % len(tasks)]})
    return made


def file_of(records, name="train.jsonl"):
    Path(name).write_text("\n".join(map(json.dumps, records)))
    for record in records:
        if "image" in record:
            Path(record["image"]).touch()
    return name


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(source):
    return [
        (sample.images[0].path.name, sample.messages[0].parts[1].text)
        for sample in map(source.__getitem__, range(len(source)))
    ]


def test_no_picture_is_on_two_sides_and_nothing_is_lost():
    path = file_of(rows(40))
    sources = held_out(read(path), {"val": 0.1, "test": 0.2})
    sides = {split: contents(source) for split, source in sources.items()}
    assert sorted(itertools.chain(*sides.values())) == sorted(contents(read(path)))
    assert {split: len(side) for split, side in sides.items()} == {"train": 84, "val": 12, "test": 24}
    pictures = [{picture for picture, _ in side} for side in sides.values()]
    assert sum(map(len, pictures)) == len(set().union(*pictures)) == 40


def test_the_order_of_the_samples_changes_nothing():
    records = rows(40)
    before = {
        split: sorted(contents(one)) for split, one in held_out(read(file_of(records)), {"val": 0.1}).items()
    }
    random.Random(0).shuffle(records)
    after = held_out(read(file_of(records, "shuffled.jsonl")), {"val": 0.1})
    assert {split: sorted(contents(one)) for split, one in after.items()} == before


def test_each_split_is_the_same_without_the_other():
    source = read(file_of(rows(40, each=2, tasks=["vqa", "ocr", "rare", "vqa"])))
    both = held_out(source, {"val": 0.15, "test": 0.1})
    for split, share in (("val", 0.15), ("test", 0.1)):
        assert contents(held_out(source, {split: share})[split]) == contents(both[split])


def test_each_task_gives_its_share():
    path = file_of(rows(100, each=1, tasks=["vqa", "vqa", "vqa", "ocr"]))
    val = held_out(read(path), {"val": 0.2})["val"]
    names, of = val.task_table()
    assert {name: list(of).count(number) for number, name in enumerate(names)} == {"vqa": 15, "ocr": 5}


def test_samples_of_several_pictures_stay_with_all_that_share_one():
    records = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "images": [f"{number}.png", f"{number + 1 - number % 3 // 2}.png"],
        }
        for number in range(60)
    ]  # 0-1, 1-2, 2-2; 3-4, ...
    for number in range(61):
        Path(f"{number}.png").touch()
    sides = held_out(read(file_of(records)), {"val": 0.1})
    seen = [{image.path for sample in side for image in sample.images} for side in sides.values()]
    assert len(sides["val"]) == 6
    assert not seen[0] & seen[1]


def test_equal_samples_without_pictures_stay_together():
    records = [{"question": f"{number % 10}", "answer": "a"} for number in range(30)]
    sides = held_out(read(file_of(records)), {"val": 0.1})
    texts = [{sample.messages[0].parts[0].text for sample in side} for side in sides.values()]
    assert len(sides["val"]) == 3
    assert not texts[0] & texts[1]


def test_few_samples_of_many_tasks_still_give_one():
    path = file_of([row | {"task": f"{place}"} for place, row in enumerate(rows(8, each=1))])
    assert {split: len(one) for split, one in held_out(read(path), {"val": 0.1, "test": 0.1}).items()} == {
        "train": 6,
        "val": 1,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"val": 0.0}, "data.val: found 0%; expected a share above 0"),
        ({"val": 0.5, "test": 0.45}, "data.val: found 50% for val and 45% for test, which leaves too little"),
        ({"val": 0.1}, "data.val: 10% of 3 samples is no whole picture; expected a larger share, or a file"),
    ],
)
def test_what_cannot_be_held_out(shares, expected):
    with pytest.raises(UserError) as caught:
        held_out(read(file_of(rows(1))), shares)
    assert expected in str(caught.value)


def splits(**given):
    return Splits(
        {"train": None, "val": None, "test": None, "predict": None} | given, None, "raise", None, False
    )


def test_any_source_gives_a_share():
    shared = splits(train=Chain([Drawn(size=50), Drawn(size=50, seed=1)]), val="10%")
    assert (len(shared.source("val")), len(shared.source("train"))) == (10, 90)
    assert shared.source("train").names()


def test_the_settings_of_a_run():
    file_of(rows(20))
    both = splits(train="train.jsonl", val="10 %", test="10%")
    both.open(["train", "val"])
    assert {split: len(source) for split, source in both.opened.items()} == {"train": 48, "val": 6, "test": 6}
    with pytest.raises(UserError, match=r"data\.train is not set"):
        splits(val="10%").source("val")
    with pytest.raises(UserError, match=r"data.train: found 10%"):
        splits(train="10%")
    Path("broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"foo": 1}')
    with pytest.raises(DataError) as caught:
        splits(train="broken.jsonl", val="10%").open(["train", "val"])
    assert str(caught.value).count("broken.jsonl:2") == 1
