"""Detection data of COCO, and rows of RefCOCO."""

import json
import pickle
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Box, Nothing, Region, Text
from lightning_vlm.data.read.coco import COCO
from lightning_vlm.data.read.readers import Messages, OpenAIMessages, read
from lightning_vlm.errors import DataError, UserError
from tests.data.read.test_any_record import places_in
from tests.support.rows import change

FILE = "instances.json"


@pytest.fixture(autouse=True)
def pictures(folder):
    PIL.Image.new("RGB", (64, 48)).save("1.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (64, 48)).save("turned.jpg", exif=exif)


def annotation(number, image, category, *bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


TRIANGLE, SQUARE = [1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30, 20, 30]
DATA = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "1.png", "width": 64, "height": 48},
        {"id": 5, "file_name": "pictures/dog.png", "width": 4, "height": 3},
        {"id": 6, "file_name": "cat.png", "width": 4, "height": 3},
    ],
    "annotations": [
        annotation(1, 7, 3, 30.5, 20, 10, 10, segmentation=[TRIANGLE, SQUARE], area=1),
        annotation(2, 7, 1, 30, 10, 10, 10, segmentation=[TRIANGLE]),
        annotation(3, 7, 3, 0, 20, 64, 28.01, segmentation=[SQUARE]),
        annotation(4, 7, 3, 0, 0, 64, 48, iscrowd=1, segmentation={"counts": []}),
        annotation(5, 5, 3, 0, 0, 4, 3, segmentation=[[0, 0, 4, 0, 4, 3]]),
    ],
    "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 1, "name": "dog"}],
}


def written(data):
    Path(FILE).write_text(json.dumps(data))
    return FILE


def pixels(*numbers):
    x1, y1, x2, y2, label = numbers
    return Box((x1, y1, x2, y2), label, pixels=True)


def test_all_boxes_of_a_picture_in_reading_order():
    for source in (COCO(written(DATA)), read(FILE), pickle.loads(pickle.dumps(COCO(FILE)))):
        first, second = source
        assert first.messages[0].parts[1] == Text("Find all objects of these kinds: cat, dog.")
        assert first.messages[1].parts == (
            pixels(30, 10, 40, 20, "dog"),
            pixels(0, 20, 64, 48, "cat"),  # rounded numbers end at the edge
            pixels(30.5, 20, 40.5, 30, "cat"),
        )
        assert {part.label for part in first.shown} == {"cat", "dog"}
        assert first.source == "instances.json:images[0]"
        assert second.messages[1].parts == (pixels(0, 0, 4, 3, "cat"),)
        assert (first.task, len(source)) == ("detection", 2)
        assert source.notes == [
            "annotations of crowds are ignored ('iscrowd') (annotations: 1)",
            "pictures without annotations are left out; keep_empty: true keeps them (pictures: 1)",
        ]


def test_options():
    by_category = COCO(written(DATA), by="category", question="Box each {category}!", task="d")
    asked = [(sample.messages[0].parts[1].text, len(sample.messages[1].parts)) for sample in by_category]
    assert asked == [("Box each cat!", 2), ("Box each dog!", 1), ("Box each cat!", 1)]
    assert by_category[0].task == "d"
    assert {part.label for part in by_category[0].shown} == {"cat", "dog"}
    crowd_alone = change(DATA, ("annotations", 4, "iscrowd"), 1)
    sources = [sample.source for sample in COCO(written(crowd_alone), keep_empty=True)]
    assert sources == ["instances.json:images[0]", "instances.json:images[2]"]  # not that nothing is there
    written(DATA)
    assert by_category.notes[0].endswith("(annotations: 1)")
    with_empty = COCO(FILE, keep_empty=True)
    assert with_empty[2].messages[1].parts == (Nothing(),)
    regions = COCO(FILE, regions=True)[0].messages[1].parts
    assert regions == tuple(
        Region(tuple(outline), label, pixels=True)
        for outline, label in ((TRIANGLE, "cat"), (SQUARE, "cat"), (TRIANGLE, "dog"), (SQUARE, "cat"))
    )
    for options in ({"by": "x"}, {"by": "category", "keep_empty": True}, {"bad_boxes": "x"}):
        with pytest.raises(UserError, match=r"choose|keep_empty"):
            COCO(FILE, **options)
    with pytest.raises(UserError, match="no effect on a file of COCO"):
        read(FILE, box_format="0-1000")


@pytest.mark.parametrize(
    ("path", "value", "source", "key", "message"),
    [
        (("annotations", 1, "bbox"), [0, 0, 65, 3], ":images[0]", "annotations[1].bbox", "64×48 pixels"),
        (("annotations", 1, "bbox"), [0, 0, 0, 3], ":images[0]", "annotations[1].bbox", "an area"),
        (("annotations", 1, "bbox"), [0, 0, 3], ":images[0]", "annotations[1].bbox", "four numbers"),
        (("annotations", 1, "bbox"), ..., ":images[0]", "annotations[1].bbox", "four numbers"),
        (("annotations", 1, "category_id"), 9, ":images[0]", "annotations[1].category_id", "one of the 'cat"),
        (("annotations", 1, "image_id"), 9, "", "annotations[1].image_id", "one of the 'images'"),
        (("annotations", 1), [], "", "annotations[1]", "an object with the key 'image_id'"),
        (("images", 1, "id"), 7, "", "images[1].id", "which images[0] has"),
        (("images", 0, "width"), 640, ":images[0]", "", "'1.png' has 64×48 pixels upright"),
        (("images", 0, "file_name"), "turned.jpg", ":images[0]", "", "save it upright"),
        (("images", 0, "file_name"), "2.png", ":images[0]", "file_name", "does not exist"),
        (("images", 0, "file_name"), ..., ":images[0]", "file_name", "the path of a picture"),
        (("categories", 0, "name"), 3, "", "categories[0].name", "a text"),
        (("categories",), {}, "", "categories", "a list" and "as COCO has it"),
    ],
)
def test_faults_have_their_place(path, value, source, key, message):
    with pytest.raises(DataError) as caught:
        COCO(written(change(DATA, path, value)))
    assert (caught.value.source, caught.value.key) == (FILE + source, key)
    assert message in str(caught.value)


def test_outlines_must_be_there():
    with pytest.raises(DataError, match="masks in RLE have no outline"):
        COCO(written(change(DATA, ("annotations", 1, "segmentation"), {"counts": "x"})), regions=True)


def test_clipped_and_skipped():
    data = change(DATA, ("annotations", 1, "bbox"), [60, 40, 40, 40])
    data = change(data, ("annotations", 0, "bbox"), [0, 0, 0, 9])
    source = COCO(written(data), bad_boxes="clip")
    assert source[0].messages[1].parts == (pixels(0, 20, 64, 48, "cat"), pixels(60, 40, 64, 48, "dog"))
    assert "boxes without width or height were left out (bad_boxes: clip) (annotations: 1)" in source.notes
    assert any(note.startswith("what reaches beyond") and "boxes: 1" in note for note in source.notes)
    skipping = COCO(written(data), on_bad_sample="skip")
    assert (len(skipping), len(skipping.skipped)) == (1, 1)


anything = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3) | st.just([])


@given(st.sampled_from(list(places_in(DATA))), anything | st.just(...), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_garbage_gives_our_errors_only(path, value, regions):
    message = FILE
    try:
        for source in (COCO(written(change(DATA, path, value)), regions=regions), read(FILE)):
            assert list(source)
    except UserError as error:
        message = str(error)
    assert (FILE in message and message.isprintable()) or "\n" in message


CAT = "the left cat"
SENTENCES = [{"sent": "the left cat.", "sent_id": 1}, {"sent": "b"}]
ROW = {"image": "1.png", "sentences": SENTENCES, "bbox": [8, 6, 16, 12]}


@pytest.mark.parametrize(
    ("record", "format", "expected"),
    [
        (ROW, "pixels xywh", [pixels(8, 6, 24, 18, CAT)]),
        (ROW, "pixels xyxy", [pixels(8, 6, 16, 12, CAT)]),
        (
            {"file_name": "1.png", "sent": "a dog", "bbox": [0, 0, 500, 1000]},
            "0-1000 xyxy",
            [Box((0, 0, 0.5, 1), "a dog")],
        ),
        (
            {**ROW, "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            "pixels xyxy",
            [pixels(1, 2, 3, 4, CAT), pixels(5, 6, 7, 8, CAT)],
        ),
        ({**ROW, "bbox": []}, "pixels xyxy", [Nothing()]),
    ],
)
def test_rows_of_refcoco(record, format, expected, write):
    (sample,) = read(write(record), box_format=format)
    question = sample.messages[0].parts[1].text
    assert question in ("Where is the left cat?", "Where is a dog?")
    assert list(sample.messages[1].parts) == expected


@pytest.mark.parametrize(
    ("record", "format", "key", "message"),
    [
        (ROW, None, "bbox", "data.box_format: pixels xywh"),
        (ROW, "pixels", "bbox", "data.box_format: pixels xywh"),
        ({**ROW, "bbox": [1, 2, 3]}, "pixels xyxy", "bbox", "four numbers"),
        ({**ROW, "bbox": "x"}, "pixels xyxy", "bbox", "a list of four numbers"),
        ({**ROW, "sentences": []}, "pixels xyxy", "sentences", "at least one"),
        ({**ROW, "sentences": [{"x": 1}]}, "pixels xyxy", "sentences[0]", "'sent'"),
        ({**ROW, "bbox": [8, 6, 16, 99]}, "pixels xyxy", "bbox[0]", "64×48 pixels"),
    ],
)
def test_bad_rows_of_refcoco(record, format, key, message, write):
    with pytest.raises(DataError) as caught:
        read(write(record), box_format=format)
    assert (caught.value.source, caught.value.key) == ("data.jsonl:1", key)
    assert message in str(caught.value)


def found(items):
    return [{"bbox": box, "category": label} for box, label in items]


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ({"bbox": [[8, 6, 16, 12]], "category": ["a"]}, [pixels(8, 6, 24, 18, "a")]),
        ({"bbox": [[8, 6, 16, 12]]}, [pixels(8, 6, 24, 18, None)]),
        (
            found([([8, 6, 1, 1], "a"), ([1, 2, 3, 4], "b")]),
            [pixels(8, 6, 9, 7, "a"), pixels(1, 2, 4, 6, "b")],
        ),
        ({"bbox": [], "category": []}, [Nothing()]),
        ([], [Nothing()]),
    ],
)
def test_objects_of_a_picture(objects, expected, write):
    source = read(write({"image": "1.png", "objects": objects}), box_format="pixels xywh")
    assert list(source[0].messages[1].parts) == expected
    assert not source.notes or "no effect" in source.notes[0]


@pytest.mark.parametrize(
    ("objects", "key", "message"),
    [
        ({"bbox": [[8, 6, 16, 12]], "category": [3]}, "objects.category[0]", "the name of a category"),
        ({"bbox": [[8, 6, 16, 12]], "category": []}, "objects", "as many items of 'category'"),
        ({"bbox": [[8, 6, 16]], "category": ["a"]}, "objects.bbox[0]", "four numbers"),
        ({"bbox": [[1, 1, 1, 1], [8, 6, 90, 1]]}, "objects.bbox[1]", "64×48 pixels"),
        ({"box": []}, "objects", "lists 'bbox' and 'category'"),
    ],
)
def test_objects_that_are_wrong(objects, key, message, write):
    with pytest.raises(DataError) as caught:
        read(write({"image": "1.png", "objects": objects}), box_format="pixels xywh")
    assert (caught.value.source, caught.value.key) == ("data.jsonl:1", key)
    assert message in str(caught.value)


@pytest.mark.parametrize("are_lists", [True, False])
def test_categories_of_a_data_set_have_names(are_lists):
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=["cat", "dog"])
    numbers = datasets.List(datasets.Value("float32"))
    if are_lists:
        objects, features = (
            {"bbox": [[8, 6, 1, 1]], "category": [1]},
            {
                "bbox": datasets.List(numbers),
                "category": datasets.List(kind),
            },
        )
    else:
        objects, features = found([([8, 6, 1, 1], 1)]), datasets.List({"bbox": numbers, "category": kind})
    rows = {"image": ["1.png"], "objects": [objects]}
    features = datasets.Features({"image": datasets.Value("string"), "objects": features})
    datasets.Dataset.from_dict(rows, features=features).to_parquet("data.parquet")
    (sample,) = read("data.parquet", box_format="pixels xywh")
    assert sample.messages[1].parts == (pixels(8, 6, 9, 7, "dog"),)


@pytest.mark.parametrize("reader", [Messages, OpenAIMessages, read])
def test_an_answer_that_nothing_is_there(reader, write):
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": [{"type": "nothing"}]}]
    assert reader(write({"messages": turns}))[0].messages[1].parts == (Nothing(),)
