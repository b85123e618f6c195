"""All faults of a file in one run, and what a message says of a picture that isn't there."""

import json
import pickle
import time
from pathlib import Path

import pytest

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.files_below import where_instead
from lightning_vlm.data.read.faults import SHOWN, BadSamplesError
from lightning_vlm.data.read.readers import DataFile, Messages, read
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import shorten

pytestmark = pytest.mark.usefixtures("folder")

GOOD = {"question": "What?", "answer": "A cat.", "image": "cat.png"}


def faults(path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return caught.value


def test_all_faults_are_reported_at_once(write):
    bad = ["{", {**GOOD, "image": "cta.png"}, {"question": 3.5j.imag, "answer": []}, {**GOOD, "weight": -1}]
    error = faults(write(GOOD, *bad, GOOD, '{"task": "a", "task": "b"}'))
    lines = str(error).split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        ["data.jsonl:2", "column 2"],
        ["data.jsonl:3", "image"],
        ["data.jsonl:4", "answer"],
        ["data.jsonl:5", "weight"],
        ["data.jsonl:7", "task"],
    ]
    assert "did you mean 'cat.png'?" in lines[1]
    assert (error.source, error.key) == ("data.jsonl:2", "column 2")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source) == (str(error), error.source)


def test_one_fault_is_one_line(write):
    error = faults(write(GOOD, {**GOOD, "weight": -1}))
    assert type(error) is DataError
    assert str(error) == "data.jsonl:2: weight: found -1.0; expected a finite number >= 0"


def test_equal_faults_share_a_line(write):
    error = faults(write(*[{**GOOD, "weight": -1}] * 3))
    assert str(error).endswith("expected a finite number >= 0 (also data.jsonl:2, data.jsonl:3)")


def test_many_faults_are_counted_by_kind(write):
    many = [{**GOOD, "image": f"no{n}.png"} for n in range(300)]
    error = faults(write(*many, {**GOOD, "weight": -1}, "{"))
    assert isinstance(error, BadSamplesError)
    lines = str(error).split("\n")
    assert len(lines) <= SHOWN + 1
    assert lines[-1] == (
        "data.jsonl: 302 samples are bad, 20 of them are shown: image (300), weight (1), column * (1)"
    )
    assert any("data.jsonl:301: weight" in line for line in lines)


def test_faults_before_an_array_breaks_off_are_reported_too():
    Path("data.json").write_text(f'[{json.dumps({**GOOD, "weight": -1})},\n {{"a": ]')
    lines = str(faults("data.json")).split("\n")
    assert [line.split(": ")[0] for line in lines] == ["data.json:1[0]", "data.json:2"]


def test_faults_of_a_data_set():
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([GOOD, {**GOOD, "answer": None}, {**GOOD, "image": "a"}]).save_to_disk("saved")
    error = faults("saved", image_root=".")
    # A question alone may be a prompt, so only the picture is a fault.
    assert str(error).startswith("saved:2: image: found 'a', which does not exist")


def test_faults_of_training_and_validation_are_reported_together(write):
    write({**GOOD, "weight": -1}, {**GOOD, "weight": -2}, path="train.jsonl")
    write({**GOOD, "image": "no.png"}, path="val.jsonl")
    with pytest.raises(DataError) as caught:
        VLMDataModule(train="train.jsonl", val="val.jsonl").setup("fit")
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        ["train.jsonl:1", "weight"],
        ["train.jsonl:2", "weight"],
        ["val.jsonl:1", "image"],
    ]
    with pytest.raises(DataError, match=r"^val.jsonl:1: image: [^\n]*$"):
        VLMDataModule(val="val.jsonl").setup("validate")


@pytest.mark.parametrize("reader", [DataFile, Messages, read])
@pytest.mark.parametrize(
    ("record", "key"),
    [
        ('{"messages": [], "messages": []}', "messages"),
        ('{"messages": [{"role": "user", "role": "system", "content": "a"}]}', "role"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "text": "b"}]}]}', "text"),
        ('{"question": "a", "answer": "b", "extra": {"deep": [{"x": 1, "x": 1}]}}', "x"),
    ],
)
def test_a_key_that_stands_there_twice_is_refused(reader, record, key):
    for name, content, source in (("a.jsonl", record, "a.jsonl:1"), ("a.json", f"[{record}]", "a.json:1[0]")):
        Path(name).write_text(content)
        with pytest.raises(DataError) as caught:
            reader(name)
        assert str(caught.value) == (
            f"{source}: {key}: found a key that stands there twice; expected each key of an object once"
        )


def test_a_key_that_stands_twice_around_the_rows():
    Path("a.json").write_text(f'{{"v": 1,\n"data": [{json.dumps(GOOD)}],\n"v": 2}}')
    assert str(faults("a.json")).startswith("a.json:3: v: found a key that stands there twice")


def test_a_missing_picture_names_the_option_and_where_it_was_looked_for(write, folder):
    error = str(faults(write({**GOOD, "image": "cat.jpg"})))
    assert "image: found 'cat.jpg', which does not exist" in error
    assert f"(looked for '{folder}/cat.jpg')" in error
    assert "below the image root '.' (data.image_root); did you mean 'cat.png'?" in error


def test_an_absolute_path_elsewhere_says_which_root_it_needs(write, folder):
    Path("texts").mkdir()
    error = str(faults(write({**GOOD, "image": f"{folder}/cat.png"}, path="texts/a.jsonl")))
    assert f"found {shorten(f'{folder}/cat.png')}, which is outside 'texts'" in error
    assert error.endswith(f"data.image_root says where that is, and '{folder}' has the file")
    assert len(read("texts/a.jsonl", image_root=str(folder))) == 1


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("dog.png", "; it is below '{folder}/pictures': set data.image_root to that"),
        ("{name}/cat.png", "; it is below '{parent}': set data.image_root to that"),
        ("train/cat.png", "; did you mean 'cat.png'?"),
        ("pictures/dog.jpeg", "; did you mean 'pictures/dog.png'?"),
        ("CAT.PNG", "; did you mean 'cat.png'?"),
        ("zebra.webp", ""),
        ("a/b/../zebra", ""),
        ("", ""),
    ],
)
def test_what_a_missing_picture_should_be(path, advice, folder):
    names = {"folder": folder, "name": folder.name, "parent": folder.parent}
    assert where_instead(path.format(**names), str(folder)) == advice.format(**names)


def test_a_hundred_thousand_missing_pictures_take_no_search_each(write):
    """Advice costs milliseconds, so only faults that are shown get it."""
    for number in range(500):
        Path(f"pictures/{number}.png").touch()
    path = write(*[{**GOOD, "image": f"pictures/x{n}.png"} for n in range(3000)])
    start = time.process_time()
    faults(path)
    assert time.process_time() - start < 5
