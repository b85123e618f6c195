import pickle
import sys
from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm.data.conversation import Image, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.read import hf_dataset
from lightning_vlm.data.read.hf_dataset import HFDataset
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import DataError, UserError
from tests.support.rows import ANSWER, CAT, GPT, QUESTION, image_url

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("folder")


def save(columns, features=None, path="saved"):
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return path


@pytest.fixture(params=[2, 1000], ids=["in chunks", "at once"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(hf_dataset, "_AT_ONCE", request.param)


@pytest.mark.usefixtures("chunks")
def test_messages_and_pictures():
    image, text = {"type": "image", "text": None}, {"type": "text", "text": "What?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    rows = [[image, text], [text], [image, text, image], [text, image], [text]]
    pictures = [PIL.Image.new("RGB", (4, 3), (40 * n, 0, 0)) for n in range(4)]
    turn = datasets.Features({"type": datasets.Value("string"), "text": datasets.Value("string")})
    path = save(
        {
            "id": list(range(5)),
            "messages": [[{"role": "user", "content": row}, answer] for row in rows],
            "images": [pictures[:1], [], pictures[1:3], pictures[3:], None],
            "task": ["vqa"] * 4 + [None],
        },
        datasets.Features(
            {
                "id": datasets.Value("int64"),
                "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(turn)}),
                "images": datasets.List(datasets.Image()),
                "task": datasets.Value("string"),
            }
        ),
    )
    source = HFDataset(path)
    assert [sample.source for sample in source] == [f"saved:{row}" for row in range(5)]
    assert [sample.task for sample in source] == ["vqa"] * 4 + ["default"]
    checked = [image for _, record in source._records() for image in record["images"] or ()]
    assert [image["bytes"] for image in checked] == [b""] * 4  # opening it read no picture
    shown = [[type(part) for part in sample.messages[0].parts] for sample in source]
    assert shown == [[Image, Text], [Text], [Image, Text, Image], [Text, Image], [Text]]
    colours = [
        load_image(image, "a", "b").getpixel((0, 0))[0] for sample in source for image in sample.images
    ]
    assert colours == [0, 40, 80, 120]
    assert list(pickle.loads(pickle.dumps(source))) == list(source) == list(read(path))


@pytest.mark.parametrize(
    ("column", "values", "features"),
    [
        ("image", ["cat.png", "pictures/dog.png"], None),
        ("image", [Path("cat.png"), Path("pictures/dog.png")], "bytes"),
        ("images", [["cat.png"], ["pictures/dog.png"]], None),
        ("image", ["cat.png", "pictures/dog.png"], "image"),
    ],
)
@pytest.mark.usefixtures("chunks")
def test_conversations_and_pictures(column, values, features, folder):
    kinds = None
    if features == "bytes":
        values = [value.read_bytes() for value in values]
    elif features == "image":  # stores paths, and embeds the files as it is saved or refers to them
        kinds = datasets.Features(
            {
                "conversations": datasets.List(
                    datasets.Features({"from": datasets.Value("string"), "value": datasets.Value("string")})
                ),
                column: datasets.Image(),
            }
        )
        values = [str(folder / value) for value in values]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, GPT]
    source = HFDataset(save({"conversations": [turns, turns], column: values}, kinds), image_root=str(folder))
    colours = [load_image(sample.images[0], sample.source, column).getpixel((0, 0)) for sample in source]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert [part.text for part in source[1].messages[0].parts[1:]] == ["What?"]


def test_contents_that_are_texts_or_lists(words):
    """Mixed contents are stored as JSON; `<image>` is a place only where there is a column of pictures."""
    mixed = [{"role": "user", "content": [image_url("cat.png"), {"type": "text", "text": "<image>"}]}, ANSWER]
    rows = {"messages": [mixed, [{"role": "user", "content": "<image>"}, ANSWER]]}
    data = datasets.Dataset.from_dict(rows, on_mixed_types="use_json")
    data.save_to_disk("saved")
    source = HFDataset("saved", image_root=".")
    assert [words(sample)[0][1] for sample in source] == [[CAT, "<image>"], ["<image>"]]
    data.add_column("image", [None, "cat.png"]).save_to_disk("with pictures")
    source = HFDataset("with pictures", image_root=".")
    assert [words(sample)[0][1] for sample in source] == [[CAT, "<image>"], [CAT]]


def test_bad_rows():
    good, bad = [QUESTION, ANSWER], [{"role": "usr", "content": "?"}]
    two = [{"role": "user", "content": "<image><image>"}, ANSWER]
    path = save({"messages": [good, bad, two], "image": [None, None, "cat.png"]})
    with pytest.raises(DataError, match=r"saved:1: messages\[0\].role"):
        HFDataset(path, image_root=".")
    source = HFDataset(path, image_root=".", on_bad_sample="skip")
    assert [sample.source for sample in source] == ["saved:0"]
    assert [error.key for error in source.skipped] == ["messages[0].role", "image"]
    with pytest.raises(DataError, match=r"saved:0: image: found 'cat.png', which does not exist"):
        HFDataset(save({"messages": [good], "image": ["cat.png"]}))


def test_splits():
    one = datasets.Dataset.from_dict({"messages": [[QUESTION, ANSWER]]})
    datasets.DatasetDict({"train": one, "val": one}).save_to_disk("two")
    datasets.DatasetDict({"only": one}).save_to_disk("one")
    assert HFDataset("two", split="val")[0].source == "two/val:0"
    assert HFDataset("two", split=["dev", "val", "train"])[0].source == "two/val:0"
    assert len(HFDataset("one")) == 1
    for path, split, message in (
        ("two", None, "choose one of train, val"),
        ("two", "test", "split is test; choose one of train, val"),
        (save({"messages": [[QUESTION]]}), "train", "it has no splits"),
    ):
        with pytest.raises(UserError, match=message):
            HFDataset(path, split=split)


def test_paths_that_hold_no_data_set(monkeypatch):
    with pytest.raises(DataError, match=r"^missing: found no such folder"):
        HFDataset("missing")
    Path("nothing").mkdir()
    with pytest.raises(DataError, match=r"^nothing: found a folder that can't be read"):
        read("nothing")
    with pytest.raises(
        DataError, match=r"saved:0: found a row with the keys 'text'; expected a known format"
    ):
        HFDataset(save({"text": ["a"]}))
    with pytest.raises(DataError):  # datasets itself cannot load what it saved
        HFDataset(save({"messages": []}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lightning-vlm\[datasets\]'"):
        HFDataset("saved")
