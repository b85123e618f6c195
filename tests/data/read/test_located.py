"""Boxes, points and regions of rows, and what becomes of those that don't lie in their picture."""

import json
import math
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Box, Point, Region
from lightning_vlm.data.read.bounds import CUT
from lightning_vlm.data.read.box_format import ORDERS, UNITS, BoxFormat
from lightning_vlm.data.read.readers import Messages, OpenAIMessages, read
from lightning_vlm.errors import DataError, UserError
from tests.support.rows import ANSWER

SIDEWAYS = "sideways.jpg"
"""A picture of 4×3 pixels that stands upright as 3×4."""


@pytest.fixture(autouse=True)
def sideways(folder):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (4, 3)).save(SIDEWAYS, exif=exif)


def asked(*parts, pictures=("cat.png",)):
    """A row that shows pictures of 4×3 pixels, and then these parts."""
    content = [{"type": "image", "path": path} for path in pictures]
    return {"messages": [{"role": "user", "content": [*content, *parts]}, ANSWER]}


def box(*numbers, **more):
    return {"type": "box", "box": list(numbers), **more}


def pixels(*numbers, **more):
    return box(*numbers, pixels=True, **more)


def last_part(source):
    return source[0].messages[0].parts[-1]


@pytest.mark.parametrize("reader", [Messages, OpenAIMessages, read])
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (box(0, 0.5, 1, 1, label="a cat"), Box((0, 0.5, 1, 1), "a cat")),
        (pixels(1, 0, 4, 3, image=0), Box((1, 0, 4, 3), image=0, pixels=True)),
        ({"type": "point", "point": [0.5, 0], "label": "it"}, Point((0.5, 0), "it")),
        ({"type": "region", "region": [0, 0, 1, 0, 1, 1]}, Region((0, 0, 1, 0, 1, 1))),
        (
            {"type": "region", "region": [[0, 0], [4, 0], [4, 3]], "pixels": True},
            Region((0, 0, 4, 0, 4, 3), pixels=True),
        ),
    ],
)
def test_parts_that_lie_in_pictures(reader, part, expected, write):
    assert last_part(reader(write(asked(part)))) == expected


BAD = [
    (box(0, 0, 1, 1, lable="a"), ".lable", "did you mean 'label'?"),
    (box(0, 0, 1, 1, label=3), ".label", "a text"),
    (box(0, 0, 1, 1, image=-1), ".image", "counted from 0"),
    (box(0, 0, 1, 1, image=True), ".image", "counted from 0"),
    (box(0, 0, 1, 1, image=1), ".image", "of the 1 in this sample"),
    (box(0, 0, 1, 1, pixels=1), ".pixels", "true or false"),
    ({"type": "point", "point": [0, 0, 1]}, ".point", "two numbers"),
    ({"type": "region", "region": [0, 0, 1, 1]}, ".region", "six numbers"),
    ({"type": "region", "region": [0, 0, 1, 1, 0, 1, 0]}, ".region", "even"),
    ({"type": "region", "region": [[0, 0], [1, 1], [0]]}, ".region", "six numbers"),
    ({"type": "region", "region": [0, 0, 0.5, 0.5, 1, 1]}, "", "an area"),
    ({"type": "point", "point": [0, 1.5]}, "", "between 0 and 1"),
    (box(0.5, 0, 0.2, 1), "", "x1 <= x2"),
    (box(0.5, 0, 0.5, 1), "", "an area"),
    (box(0, 0, 1, math.nan), "", "finite numbers"),
    (pixels(0, 0, 5, 3), "", "within the picture of 4×3 pixels; data.bad_boxes: clip"),
    (pixels(-1, 0, 3, 3), "", "within the picture of 4×3 pixels"),
    (pixels(0, 0, 4, 3.2), "", "within the picture of 4×3 pixels"),
    (pixels(0, 0, math.inf, 3), "", "finite numbers"),
]


@pytest.mark.parametrize(("part", "key", "message"), BAD)
def test_bad_ones_are_refused_with_line_and_key(part, key, message, write):
    with pytest.raises(DataError) as caught:
        Messages(write(asked(), asked(part)))
    shown = caught.value
    assert (shown.source, shown.key) == ("data.jsonl:2", f"messages[0].content[1]{key}")
    assert message in str(shown)
    assert len(str(shown)) < 330


@pytest.mark.parametrize(
    ("part", "kept", "line"),
    [
        (pixels(-1, 0, 6, 3), Box((0, 0, 4, 3), pixels=True), "cut off"),
        (pixels(1, 2, 3, 3.04), Box((1, 2, 3, 3), pixels=True), None),  # as rounded numbers of COCO
        (box(0.5, 0, 0.2, 1.1), Box((0.2, 0, 0.5, 1)), "exchanged"),
        ({"type": "point", "point": [0, 1.5]}, Point((0, 1)), "cut off"),
        ({"type": "region", "region": [0, 0, 1.5, 0, 1, 1]}, Region((0, 0, 1, 0, 1, 1)), "cut off"),
    ],
)
def test_clipped_by_choice_and_counted(part, kept, line, write):
    source = Messages(write(asked(part), asked(part)), bad_boxes="clip")
    assert last_part(source) == kept
    assert [note.endswith("(boxes: 2)") for note in source.notes] == [True] * len(source.notes)
    assert (line is None and not source.notes) or line in " ".join(source.notes)


@pytest.mark.parametrize(
    "part", [box(5, 5, 40, 80), pixels(0, 0, 500, 500), pixels(4, 0, 6, 3), box(0, 0, 1, math.nan)]
)
def test_what_clipping_would_hide_is_refused_still(part, write):
    with pytest.raises(DataError):
        Messages(write(asked(part)), bad_boxes="clip")


def test_the_size_is_that_of_the_upright_picture(write):
    tall = pixels(0, 0, 3, 4)
    assert last_part(Messages(write(asked(tall, pictures=[SIDEWAYS])))) == Box((0, 0, 3, 4), pixels=True)
    with pytest.raises(DataError, match="3×4 pixels"):
        Messages(write(asked(pixels(0, 0, 4, 3), pictures=[SIDEWAYS])))
    second = asked(pixels(0, 0, 3, 4), pictures=["cat.png", SIDEWAYS])  # the last one before it
    source = Messages(write(second))
    assert last_part(source).image is None
    assert source.notes == [
        "in samples of several pictures, boxes without 'image' lie in the last picture before them (boxes: 1)"
    ]
    with pytest.raises(DataError, match="4×3 pixels"):
        Messages(write(asked(pixels(0, 0, 3, 4, image=0), pictures=["cat.png", SIDEWAYS])))


def test_pictures_are_opened_for_boxes_in_pixels_alone(write):
    Path("cat.png").write_bytes(b"no picture")
    assert last_part(Messages(write(asked(box(0, 0, 1, 1)))))
    with pytest.raises(DataError, match="not a picture"):
        Messages(write(asked(pixels(0, 0, 1, 1))))


def test_pictures_in_rows_are_looked_at_when_a_sample_is_made(write):
    datasets = pytest.importorskip("datasets")
    content = [{"type": "image"}, pixels(0, 0, 5, 3)]
    rows = {
        "messages": [json.dumps([{"role": "user", "content": content}, ANSWER])],
        "image": [{"bytes": Path("cat.png").read_bytes(), "path": None}],
    }
    datasets.Dataset.from_dict(rows).to_parquet("data.parquet")
    source = read("data.parquet")
    assert "when samples are rendered" in source.notes[0]
    with pytest.raises(DataError, match="4×3 pixels"):
        source[0]
    clipping = read("data.parquet", bad_boxes="clip")
    assert last_part(clipping) == Box((0, 0, 4, 3), pixels=True)
    assert clipping[0].changes == (CUT,)
    assert read(write(asked(pixels(0, 0, 5, 3))), bad_boxes="clip")[0].changes == ()  # counted at the start


def test_options_are_checked(write):
    path = write(asked())
    with pytest.raises(UserError, match="choose 'error' or 'clip'"):
        read(path, bad_boxes="drop")
    with pytest.raises(UserError, match="did you mean xywh"):
        read(path, box_format="pixels xyhw")


@given(
    unit=st.sampled_from(list(UNITS)),
    order=st.sampled_from([None, *ORDERS]),
    numbers=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_format_is_undone_by_hand(unit, order, numbers):
    x1, y1, x2, y2 = numbers
    written = {"yxyx": [y1, x1, y2, x2], "xywh": [x1, y1, x2 - x1, y2 - y1]}.get(order, numbers)
    whole = {"0-1000": 1000, "0-999": 999, "0-100": 100}.get(unit, 1)
    read_back = BoxFormat.read(f"{unit} {order or ''}").numbers([value * whole for value in written])
    assert read_back == pytest.approx(tuple(numbers))
