"""What texts and `objects` of rows say of boxes, and what becomes of what says nothing."""

import contextlib
import json
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.kosmos2.processing_kosmos2 import patch_index_to_coordinate

from lightning_vlm.data.boxes.codecs import CODECS
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Box, Point, Region, Text
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.markup.scan import parts_in
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.data.read.reading import Location, Reading
from lightning_vlm.errors import DataError, UserError


def parts(text, format=None):
    reading = Reading(Path("."), print, box_format=BoxFormat.read(format))
    return parts_in(text, Location("a.jsonl:1", reading, "k")), reading.notes.lines()


def b(x1, y1, x2, y2, label=None, **more):
    return Box((x1, y1, x2, y2), label, **more)


THOUSAND = b(0.125, 0.235, 0.2, 0.31)
CASES = [
    # the two examples of the chapter
    ("位于<box>[[125, 235, 200, 310]]</box>图像", "0-1000", [Text("位于"), THOUSAND, Text("图像")]),
    ("找<click>红色的球</click>", None, [Text("找"), Text("红色的球", entity=True)]),
    ("<region>[[125,235,200,310]]</region>", "0-1000", [THOUSAND]),
    ("<region>[[1,2],[3,4],[5,6]]</region>", "pixels", [Region((1, 2, 3, 4, 5, 6), pixels=True)]),
    ("<click>(10,20)</click>", "0-100", [Point((0.1, 0.2))]),
    ("<point>[[0.1,0.2],[0.3,0.4]]</point>", "fractions", [Point((0.1, 0.2)), Point((0.3, 0.4))]),
    ("<polygon>1 2 3 4 5 6 7 8</polygon>", "pixels", [Region((1, 2, 3, 4, 5, 6, 7, 8), pixels=True)]),
    # InternVL, Qwen-VL, Qwen2-VL, DeepSeek-VL2, GLM-4.xV
    (
        "<ref>a dog</ref><box>[[0, 0, 500, 500], [0, 0, 250, 1000]]</box> runs",
        "0-1000",
        [b(0, 0, 0.5, 0.5, "a dog"), b(0, 0, 0.25, 1, "a dog"), Text(" runs")],
    ),
    ("<ref>it</ref><box>(0,0),(500,250)</box>", "0-1000", [b(0, 0, 0.5, 0.25, "it")]),
    (
        "<|object_ref_start|>a<|object_ref_end|><|box_start|>(0,0),(5,5)<|box_end|>"
        "<|box_start|>(1,1),(6,6)<|box_end|> <|box_start|>(1,1),(6,6)<|box_end|>",
        "0-100",
        [b(0, 0, 0.05, 0.05, "a"), b(0.01, 0.01, 0.06, 0.06, "a"), Text(" "), b(0.01, 0.01, 0.06, 0.06)],
    ),
    ("<|ref|>x<|/ref|><|det|>[[0, 0, 999, 333]]<|/det|>", None, [b(0, 0, 1, 333 / 999, "x")]),
    ("<|begin_of_box|>[[0,0,100,200]]<|end_of_box|>", "0-1000", [b(0, 0, 0.1, 0.2)]),
    ("<|begin_of_box|>42<|end_of_box|>", None, [Text("<|begin_of_box|>42<|end_of_box|>")]),
    ("[[0,0,100,200]]", "0-1000", [b(0, 0, 0.1, 0.2)]),
    # JSON of Qwen and Gemma
    (
        'See:\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"point_2d": [3, 4], "label": "b"}]\n```.',
        "pixels",
        [Text("See:\n"), b(1, 2, 3, 4, "a", pixels=True), Point((3, 4), "b", pixels=True), Text(".")],
    ),
    (
        '{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
        "0-100",
        [b(0.01, 0.02, 0.03, 0.04), b(0.05, 0.06, 0.07, 0.08)],
    ),
    ('[{"box_2d": [250, 125, 500, 1000], "label": "cat"}]', None, [b(0.125, 0.25, 1, 0.5, "cat")]),
    ('Reply as [{"bbox_2d": [x1, y1, x2, y2]}].', None, [Text('Reply as [{"bbox_2d": [x1, y1, x2, y2]}].')]),
    # LLaVA, Molmo
    ("At [0.12, 0.3, 0.5, 0.8].", "fractions", [Text("At "), b(0.12, 0.3, 0.5, 0.8), Text(".")]),
    ("[1, 2, 3, 4] [0, 1, 1, 0]", "fractions", [Text("[1, 2, 3, 4] [0, 1, 1, 0]")]),
    ('<point x="10.5" y="20" alt="a dog">dog</point>', None, [Point((0.105, 0.2), "a dog")]),
    (
        '<points x1="1" y1="2" x2="30" y2="40" alt="">cups</points>',
        None,
        [Point((0.01, 0.02), "cups"), Point((0.3, 0.4), "cups")],
    ),
    (
        '<points coords="1 1 100 200 2 300 400;2 3 500 600">cups</points>',
        None,
        [
            Point((0.1, 0.2), "cups", image=0),
            Point((0.3, 0.4), "cups", image=0),
            Point((0.5, 0.6), "cups", image=1),
        ],
    ),
    # location tokens
    (
        "<loc0000><loc0512><loc1023><loc1023> cat ; <loc0000><loc0000><loc0001><loc0001> a dog",
        None,
        [
            b(512 / 1023, 0, 1, 1, "cat"),
            b(0, 0, 1 / 1023, 1 / 1023, "a dog"),
        ],
    ),
    (
        "cat<loc_0><loc_1><loc_2><loc_3>dog<loc_4><loc_5><loc_6><loc_7><loc_8><loc_9><loc_10><loc_11>",
        None,
        [
            b(0.0005, 0.0015, 0.0025, 0.0035, "cat"),
            b(0.0045, 0.0055, 0.0065, 0.0075, "dog"),
            b(0.0085, 0.0095, 0.0105, 0.0115, "dog"),
        ],
    ),
    (
        "What is <loc_0><loc_1><loc_2><loc_3>?",
        None,
        [Text("What is "), b(0.0005, 0.0015, 0.0025, 0.0035), Text("?")],
    ),
]


@pytest.mark.parametrize(("text", "format", "expected"), CASES)
def test_what_texts_spell(text, format, expected):
    found, _ = parts(text, format)
    assert [type(part) for part in found] == [type(part) for part in expected]
    for part, wanted in zip(found, expected, strict=True):
        if isinstance(part, Text):
            assert part == wanted
        else:
            assert part.numbers == pytest.approx(wanted.numbers, abs=1e-12)
            assert (part.label, part.image, part.pixels) == (wanted.label, wanted.image, wanted.pixels)


@pytest.mark.parametrize("text", [text for text, format, _ in CASES if format not in (None, "fractions")])
def test_an_unknown_unit_is_refused_or_stays_words_by_choice(text):
    if text.startswith("[["):  # a bare list may be anything
        assert parts(text)[0] == [Text(text)]
        return
    with pytest.raises(DataError, match="whose unit nothing says"):
        parts(text)
    assert parts(text, "text")[0] == [Text(text)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("<region>[[x1,y1,x2,y2]]</region>", "'<region>' without numbers stays words"),
        ('{"name": "f", "arguments": {"bbox_2d": [1, 2, 3, 4]}}', "isn't a list of objects"),
        ("[0.12, 0.3, 0.5, 0.8]", "data.box_format: fractions reads them"),
        ("<loc0000><loc0512><loc1023><loc1023><seg001> cat", "masks stay words"),
        ("<box>the red one</box>", "'<box>' without numbers"),
    ],
)
def test_what_is_no_box_stays_words_with_a_line(text, line):
    found, notes = parts(text)
    assert found == [Text(text)]
    assert line in notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<box>[[1,2,3]]</box>", "a place of 3 numbers"),
        ("<loc_1><loc_2><loc_3>", "an odd number of tokens"),
        ('[{"bbox_2d": [1, 2, 3, 4], "score": 1}]', "the key 'score' beside 'bbox_2d'"),
        ('[{"bbox_2d": [1, 2, 3]}]', "4 numbers as 'bbox_2d'"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": 3}]', "a text as 'label'"),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"a": 1}]', "in each object"),
        ('<point x="1" alt="a">a</point>', "x and y of each point"),
    ],
)
def test_boxes_that_are_not_whole(text, message):
    with pytest.raises(DataError, match=re.escape(message)):
        parts(text, "0-1000")


@given(st.integers(0, 1023), st.integers(0, 1023))
def test_patches_as_the_processor_of_kosmos_reads_them(first, last):
    (box,), _ = parts(f"<object><patch_index_{first:04}><patch_index_{last:04}></object>")
    assert box.numbers == pytest.approx(patch_index_to_coordinate(first, last, 32))


TEXTS = """
<box> </box> <ref> </ref> <|box_start|> <|box_end|> <loc0012> <loc_3> <loc_2000> <bbox> <ref-object> [[ ]]
[ ] ( ) { } , ; : ``` ```json " <point x=" y=" > </point> <object> </object> <patch_index_0003> <seg001>
<patch_index_9999> {"bbox_2d": [1,2,3,4] "label": nan 1e999 -1 0.5 1 2 3.5 999 a \ue0000 <click> </click>
<|det|> <|/det|> <region> </region> <quad> </quad> <points
"""
UNIT = {"qwen2_5_vl": "pixels", "decimals": "fractions", "deepseek": "0-999"}
"""In which unit codecs write; the others say it themselves, or write 0-1000."""
sides = st.tuples(st.integers(0, 990), st.integers(3, 10)).map(lambda side: (side[0], sum(side)))
written_boxes = st.builds(
    lambda x, y, label: Box((x[0] / 1000, y[0] / 1000, x[1] / 1000, y[1] / 1000), label, image=0),
    sides,
    sides,
    st.sampled_from(["cat", "a red dog", None]),
)


@pytest.mark.parametrize("name", CODECS)
@given(boxes=st.lists(written_boxes, min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_what_a_codec_writes_is_read_as_it_reads_it(name, boxes):
    codec = CODECS[name]
    if Box not in codec.writes:
        boxes = [Point(box.xyxy[:2], box.label, image=0) for box in boxes]
    if name in (
        "paligemma",
        "florence2",
        "thousandths",
    ):  # these need one
        boxes = [replace(box, label=box.label or "it") for box in boxes]
    views = [View((1000, 600), (1000, 600))]
    text = codec.write(boxes, views).text
    items, faults = codec.read(text, views)
    assert not faults
    found, _ = parts(text, UNIT.get(name, "0-1000"))
    places = [part for part in found if not isinstance(part, Text)]
    assert len(places) == len(items)
    for part, item in zip(places, items, strict=True):
        scale = (1000, 600) * 2 if part.pixels else (1,) * 4
        numbers = [value / whole for value, whole in zip(part.numbers, scale, strict=False)]
        half_a_bin = 5.1e-4 if name == "loc" else 1e-9  # which Florence-2 has in the middle
        assert numbers == pytest.approx(item.numbers, abs=half_a_bin)
        assert part.label == item.label
    words = "".join(part.text for part in found if isinstance(part, Text))
    assert not any(letter.isalnum() for letter in words)  # nothing of a box or a label is left


pieces = st.sampled_from(TEXTS.split())
formats = st.sampled_from([None, "text", "pixels", "fractions", "0-1000 yxyx", "pixels xywh"])


@given(text=st.lists(pieces | st.text(max_size=2), max_size=14).map("".join), format=formats)
@settings(max_examples=600, deadline=None)
def test_any_text_gives_parts_or_our_error(text, format):
    message = ""
    try:
        found, _ = parts(text, format)
    except DataError as error:
        message, found = str(error), [None]
    assert message.isprintable()
    if all(isinstance(part, Text) and not part.entity for part in found):
        assert "".join(part.text for part in found) == text  # no word is lost


PALIGEMMA = "<loc0001><loc0002><loc0003><loc0004> a;  "
REPEATED = ["<ref>", "<box>", '[{"', "[", "[1,", '{"bbox_2d": [', "<loc_1>", "a<loc_1>", "1 ", PALIGEMMA]


@pytest.mark.parametrize("end", ["", "<"])
@pytest.mark.parametrize("piece", REPEATED)
def test_long_texts_take_no_time(piece, end):
    """A pattern that tries each way to part a text would need years where the end doesn't fit."""
    start = time.process_time()
    with contextlib.suppress(DataError):
        parts(piece * (100_000 // len(piece)) + end, "0-1000")
    assert time.process_time() - start < 5


def row(question, answer, objects=None, images=("cat.png",)):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    more = {} if objects is None else {"objects": objects}
    return {"messages": turns, "images": list(images), **more}


@pytest.fixture(autouse=True)
def pictures(folder):
    PIL.Image.new("RGB", (2000, 1000)).save("large.png")


def answer_of(source, turn=1):
    return list(source[0].messages[turn].parts)


SWIFT = [  # the examples of its documentation, in short
    (
        row(
            "<image>Describe.",
            "<ref-object><bbox> and <ref-object><bbox> play",
            {
                "ref": ["A dog", "A woman"],
                "bbox": [[331.5, 761.4, 853.5, 994.8], [676.5, 685.8, 1099.5, 927.4]],
            },
            ["large.png"],
        ),
        [
            b(331.5, 761.4, 853.5, 994.8, "A dog", image=0, pixels=True),
            Text(" and "),
            b(676.5, 685.8, 1099.5, 927.4, "A woman", image=0, pixels=True),
            Text(" play"),
        ],
    ),
    (
        row(
            "<image>Find the <ref-object>.",
            '[\n\t{"bbox_2d": <bbox>, "label": "sheep"},\n\t{"bbox_2d": <bbox>, "label": "sheep"}\n]',
            {"ref": ["sheep"], "bbox": [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4]], "bbox_type": "norm1"},
        ),
        [b(0.1, 0.1, 0.5, 0.5, "sheep", image=0), b(0.2, 0.2, 0.4, 0.4, "sheep", image=0)],
    ),
    (
        row(
            "<image><image>Where?",
            "<bbox>",
            {"bbox": [[1500, 20]], "image_id": [1]},
            ["cat.png", "large.png"],
        ),
        [Point((1500, 20), image=1, pixels=True)],
    ),
    (
        row("<image>Where?", "It: <bbox>", {"bbox": [[0, 0, 4, 0, 4, 3, 0, 3]], "ref": []}),
        [Text("It: "), Region((0, 0, 4, 0, 4, 3, 0, 3), image=0, pixels=True)],
    ),
]


@pytest.mark.parametrize(("record", "expected"), SWIFT)
def test_objects_of_swift(record, expected, write):
    source = read(write(record))
    assert answer_of(source) == expected
    assert not any("objects" in note for note in source.notes)
    assert answer_of(read(write({**record, "objects": json.dumps(record["objects"])}))) == expected


def test_a_name_without_a_box_is_words(write):
    source = read(write(SWIFT[1][0]))
    assert [part.text for part in answer_of(source, 0)[1:]] == ["Find the ", "sheep", "."]
    assert read(write(row("<image>Spell", "<bbox>"))).notes == [
        "'<bbox>' and '<ref-object>' are ordinary text in rows without 'objects' (1 row)"
    ]
    assert read(write(row("<image>a", "b", {"bbox": []}))).notes == ["ignored: 'objects' (1 row)"]


@pytest.mark.parametrize(
    ("answer", "objects", "key", "message"),
    [
        ("<bbox>", {"bbox": []}, "objects.bbox", "0 of them and 1 '<bbox>'"),
        ("<bbox>", {"bbox": [[1, 1], [2, 2]]}, "objects.bbox", "2 of them and 1 '<bbox>'"),
        ("<ref-object>", {"ref": ["a", "b"]}, "objects.ref", "2 of them and 1 '<ref-object>'"),
        ("<bbox>", {"bbox": [[1, 1, 2]]}, "objects.bbox[0]", "3 numbers"),
        ("<bbox>", {"bbox": [[1, 1, 2, "2"]]}, "objects.bbox[0][3]", "a number"),
        ("<bbox>", {"bbox": 3}, "objects.bbox", "a list"),
        ("<bbox>", {"bbox": [[1, 1]], "bbox_type": "norm"}, "objects.bbox_type", "'norm1' (fractions)"),
        ("<bbox>", {"bbox": [[1, 1]], "image_id": [-1]}, "objects.image_id[0]", "counted from 0"),
        (
            "<bbox>",
            {"bbox": [[1, 1]], "image_id": [1]},
            "messages[1].content.image",
            "of the 1 in this sample",
        ),
        ("<bbox>", {"bbox": [[1, 1, 9, 2]]}, "messages[1].content", "within the picture of 4×3 pixels"),
        ("<bbox>", {"bbx": [[1, 1]]}, "objects.bbx", "did you mean 'bbox'?"),
        ("<bbox>", [{"caption": "a", "bbox": [1, 1, 2, 2]}], "objects", "an object with the keys"),
        ("<bbox>", "{", "objects", "an object with the keys"),
        (
            '{"action": "click", "at": <bbox>}',
            {"bbox": [[1, 1]]},
            "messages[1].content",
            "another place in JSON",
        ),
    ],
)
def test_objects_that_are_wrong(answer, objects, key, message, write):
    with pytest.raises(DataError) as caught:
        read(write(row("<image>a", answer, objects)))
    assert (caught.value.source, caught.value.key) == ("data.jsonl:1", key)
    assert message in str(caught.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-1, 4)
        | st.floats()
        | st.sampled_from(["a", "real", "\ud800", "{"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["bbox", "ref", "bbox_type", "image_id", "x"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        [
            "<bbox>",
            "<ref-object><bbox>",
            '[{"bbox_2d": <bbox>}]',
            '{"a": <bbox>',
            "<bbox><bbox>",
            '["<ref-object>',
        ]
    ),
)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_garbage_in_objects_gives_our_errors_only(objects, answer):
    Path("data.jsonl").write_text(json.dumps(row("<image>a", answer, objects)))
    message = "data.jsonl"
    try:
        (conversation,) = read("data.jsonl")
        assert pickle.loads(pickle.dumps(conversation)) == conversation
    except UserError as error:
        message = str(error)
    assert "data.jsonl" in message


def test_markup_in_every_kind_of_row(write):
    text = "<box>[[125, 235, 200, 310]]</box>"
    records = [
        row("<image>Where?", text),
        row("<image>Where?", [{"type": "text", "text": text}]),
        {
            "image": "cat.png",
            "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": text}],
        },
        {"question": "Where?", "answer": text, "image": "cat.png"},
    ]
    for record in records:
        assert answer_of(read(write(record), box_format="0-1000")) == [THOUSAND]
    own = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
    assert answer_of(Messages(write(own))) == [Text(text)]  # our own format takes words literally
    with pytest.raises(DataError, match=re.escape("data.jsonl:1: answer: found '<box>")):
        read(write(records[-1]))
    with pytest.raises(DataError, match="within the picture of 4×3 pixels"):
        read(write(records[0]), box_format="pixels")


def test_a_format_without_effect_is_said(write):
    path = write(row("<image>Where?", "There."))
    assert read(path, box_format="0-1000").notes[0].startswith("data.box_format has no effect")
    assert read(path, box_format="text").notes == []
    assert read(write(row("<image>Where?", "<box>[[0,0,1,1]]</box>")), box_format="0-1000").notes == []
