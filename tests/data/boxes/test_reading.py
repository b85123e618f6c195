"""Whatever a model writes is read: as boxes, or with a reason, and in time that grows with the text."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.boxes.codecs import CODECS, codec_of
from lightning_vlm.data.boxes.lenient import records_in
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Point, Region

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=[f"as {name}" for name in CODECS])
VIEW = View((640, 480), (640, 480))
BOX = (0.1, 0.2, 0.5, 0.8)


def read(name, text, views=(VIEW,)):
    """Boxes in thousandths, with their labels, and faults."""
    found = codec_of(name.lower()).read(text, views)
    items = [(tuple(round(1000 * value) for value in item.numbers), item.label) for item in found.items]
    return items, list(found.faults)


CAT = [((100, 200, 500, 800), "cat")]
BARE = [((100, 200, 500, 800), None)]
ALMOST = [((100, 200, 499, 800), "cat")]
TWO_CATS = [((100, 200), "cats"), ((50, 1000), "cats")]
CUT = ["a box that is cut off"]
INFINITE = ["a box with numbers that aren't finite"]
BEYOND = ["a box that reaches beyond the picture"]
OUTSIDE = ["a box outside of the picture"]


@pytest.mark.parametrize(
    ("name", "text", "items", "faults"),
    [
        # JSON, nearly
        ("qwen3_vl", '```json\n[\n\t{"bbox_2d": [100, 200, 500, 800], "label": "cat"}\n]\n```', CAT, []),
        ("qwen3_vl", 'It is {"label": "cat", "bbox_2d": [100, 200, 500, 800],} there.', CAT, []),
        ("qwen3_vl", "[{'bbox_2d': [100, 200, 500, 800,], 'label': 'cat'}]", CAT, []),
        ("qwen3_vl", "{bbox_2d: [100, 200, 500, 800], label: cat}", BARE, []),
        ("qwen3_vl", '{"bbox_2d": [100, 200, 500, 800], "label": "cat', CAT, []),
        ("qwen3_vl", '{"bbox_2d": [100, 200, 500, 800], "label": "cat\n{"bbox_2d": [1, 2', CAT, CUT),
        ("qwen3_vl", '[{"bbox_2d": [100, 200, 500, 800], "label": "cat"}, {"bbox_2d": [100, 2', CAT, CUT),
        ("qwen3_vl", '{"bbox_2d": [100, 200, 500, 800', [], CUT),
        (
            "qwen3_vl",
            '{"bbox_2d": [[100, 200, 500, 800], [100, 200, 500, 800]], "label": "cat"}',
            CAT * 2,
            [],
        ),
        ("qwen3_vl", '{"bbox_2d": "100, 200, 500, 800", "label": "cat"}', CAT, []),
        ("qwen3_vl", '{"bbox_2d": ["100", "200", 500.0, 8e2], "label": "cat"}', CAT, []),
        ("qwen3_vl", '{\\"bbox_2d\\": [100, 200, 500, 800], \\"label\\": \\"cat\\"}', CAT, []),
        ("qwen3_vl", '{"bbox_2d": [100, 200, 500, 800], "label": null, "score": 0.9}', BARE, []),
        ("qwen3_vl", '{"bbox_2d": [100, 200, 500], "label": "cat"}', [], ["a box of 3 numbers"]),
        ("qwen3_vl", '{"bbox_2d": [NaN, 200, 500, 800]}', [], INFINITE),
        ("qwen3_vl", '{"bbox_2d": [1e999, 200, 500, 800]}', [], INFINITE),
        ("qwen3_vl", f'{{"bbox_2d": [{9 * "9" * 999}, 200, 500, 800]}}', [], INFINITE),
        (
            "qwen3_vl",
            '{"bbox_2d": [500, 800, 100, 200], "label": "cat"}',
            CAT,
            ["a box with swapped corners"],
        ),
        ("qwen3_vl", '{"bbox_2d": [-5, 200, 500, 1200]}', [((0, 200, 500, 1000), None)], BEYOND),
        ("qwen3_vl", '{"bbox_2d": [1100, 200, 1200, 800]}', [], OUTSIDE),
        ("qwen3_vl", '{"bbox_2d": [300, 200, 300, 800]}', [((300, 200, 300, 800), None)], []),
        ("qwen3_vl", '{"point_2d": [100, 200], "label": "cat"}', [((100, 200), "cat")], []),
        ("qwen3_vl", '{"point_2d": [100, 200, 300], "label": "cat"}', [], ["a point of 3 numbers"]),
        ("qwen3_vl", "As said in [1], the cat is at [100, 200, 500, 800].", BARE, []),
        ("qwen3_vl", "[Note: the dog's bed is at {\"bbox_2d\": [100, 200, 500, 800]}", BARE, []),
        ("qwen3_vl", "There is no cat in the picture.", [], ["no box"]),
        ("qwen3_vl", "```json\n[]\n```", [], []),
        (
            "qwen3_vl",
            '{"label": "猫\\u732b", "bbox_2d": [100, 200, 500, 800]}',
            [((100, 200, 500, 800), "猫猫")],
            [],
        ),
        (
            "qwen3_vl",
            '{"label": "\\ud800", "bbox_2d": [100, 200, 500, 800]}',
            [((100, 200, 500, 800), "?")],
            [],
        ),
        ("qwen3_vl", '{"label": "cat", "x1": 100, "y1": 200, "x2": 500, "y2": 800}', CAT, []),
        ("gemma", '{"label": "cat", "xmin": 100, "ymin": 200, "xmax": 500, "ymax": 800}', CAT, []),
        ("gemma", '[{"box_2d": [200, 100, 800, 500], "label": "cat"}]', CAT, []),
        ("qwen2_5_vl", '{"bbox_2d": [64, 96, 320, 384], "label": "cat"}', CAT, []),
        # tags, with and without
        ("qwen2_vl", "cat(100,200),(500,800)", BARE, []),
        (
            "qwen2_vl",
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>",
            CAT,
            [],
        ),
        ("qwen2_vl", "<|object_ref_start|>cat<|box_start|>(100, 200), (500, 800)", CAT, []),
        ("qwen2_vl", "<|box_start|>(100,200),(500,800)<|box_end|><|box_start|>(10,2", BARE, CUT),
        ("qwen2_vl", "<|box_start|>(100,200,500)<|box_end|>", [], ["a box of 3 numbers"]),
        ("qwen2_vl", "[100, 200, 500, 800]", BARE, []),
        ("qwen2_vl", "<|box_start|>(100,200)<|box_end|>", [((100, 200), None)], []),
        ("glm", "The cat is at <|begin_of_box|>[[100,200,500,800]]<|end_of_box|>.", BARE, []),
        ("glm", '{"label": "cat", "bbox_2d": [100, 200, 500, 800]}', CAT, []),
        (
            "internvl",
            "<ref>cat</ref><box>[[100, 200, 500, 800]]</box> and <box>[[100, 200, 500, 800]]</box>",
            CAT + BARE,
            [],
        ),
        ("internvl", "cat[[100, 200, 500, 800]]", BARE, []),
        ("internvl", "<ref>cat[[100, 200, 500, 800], [100, 200", CAT, []),
        ("internvl", "<ref>cat</ref><box>[[100, 200, 500, 800], [100, 200, 3", CAT, CUT),
        (
            "deepseek",
            "<|ref|>cat<|/ref|><|det|>[[100, 200, 499, 799], [100, 200, 499, 799]]<|/det|>",
            ALMOST * 2,
            [],
        ),
        # tokens
        (
            "paligemma",
            "<loc0205><loc0102><loc0818><loc0511> cat ; <loc0205><loc0102><loc0818><loc0511> cat",
            CAT * 2,
            [],
        ),
        ("paligemma", "<loc0205><loc0102><loc0818><loc0511><seg000><seg127> cat", CAT, []),
        ("paligemma", "<loc0205><loc0102><loc0818> cat", [], ["a box of 3 numbers"]),
        ("loc", "<ref>cat</ref><loc_100><loc_200><loc_499><loc_799>", ALMOST, []),
        ("loc", "<loc_100><loc_200><loc_500><loc_1700>", [((100, 200, 501, 1000), None)], BEYOND),
        ("loc", "<loc_100><loc_200><loc_500>", [], ["a box of 3 numbers"]),
        ("florence2", "</s><s>cat<loc_100><loc_200><loc_500><loc_800>", [((100, 200, 500, 800), "cat")], []),
        (
            "kosmos2",
            "<phrase> cat</phrase><object><patch_index_0000><patch_index_1023></object>",
            [((16, 16, 984, 984), "cat")],
            [],
        ),
        ("kosmos2", "<object><patch_index_0000></object>", [], ["a box of one corner"]),
        ("kosmos2", "<object><patch_index_0000><patch_index_9999></object>", [], OUTSIDE),
        # points
        ("Molmo2", 'The <points coords="1 1 100 200 2 050 1000">cats</points>.', TWO_CATS, []),
        ("Molmo2", '<points coords="1 1 100 200 2 050', [], ["points that are cut off"]),
        ("Molmo2", '<points coords="7 1 100 200">cat</points>', [], ["picture 7 of 1"]),
        ("Molmo2", "There are none.", [], []),
        ("molmo", '<points x1="10.0" y1="20.0" x2="5" y2="100" alt="cats">cats</points>', TWO_CATS, []),
        # plain
        ("decimals", "It is at [0.1, .2, 0.50, 0.8].", BARE, []),
        ("thousandths", "[100, 200, 500, 800], [100, 200, 500, 800]", BARE * 2, []),
        ("thousandths", "<ref>cat</ref>[100, 200, 500, 800] beside [100, 200, 500, 800]", CAT + BARE, []),
    ],
)  # fmt: skip
def test_what_models_write(name, text, items, faults):
    assert read(name, text) == (items, faults)


def test_several_pictures():
    views = [VIEW, View((100, 100), (50, 50)), VIEW]
    items = [Box(BOX, "cat", 1), Box(BOX, "cat", 1), Box(BOX, "cat", 0)]
    text = codec_of("qwen2_vl").write(items, views).text
    assert text.startswith("Picture 2: <|object_ref_start|>cat")
    assert "\nPicture 1: " in text
    assert [item.image for item in codec_of("qwen2_vl").read(text, views).items] == [1, 1, 0]
    assert codec_of("qwen2_vl").read("Picture 4: (1,2),(3,4)", views).faults == ("picture 4 of 3",)
    with pytest.raises(ValueError, match="names no picture"):
        codec_of("qwen2_vl").write([Box(BOX, "Picture 1: cat", 1)], views)
    text = codec_of("qwen2_5_vl").write(items, views).text
    assert [one["image"] for one in json.loads(text)] == [2, 2, 1]
    points = [Point((0.1, 0.2), None, 0), Point((0.3, 0.4), None, 0), Point((0.5, 0.6), None, 2)]
    assert (
        codec_of("molmo2").write(points, views).text
        == '<points coords="1 1 100 200 2 300 400;3 3 500 600"></points>'
    )
    assert codec_of("qwen3_vl").read("[100, 200, 500, 800]", views).items[0].image == 2


def test_what_is_not_seen_is_refused_and_edges_are_cut():
    views = [View((200, 100), (50, 50), crop=(0.25, 0.0, 0.75, 1.0))]
    codec = codec_of("thousandths")
    assert codec.write([Box((0.0, 0.0, 0.5, 1.0), None, 0)], views).text == "[0, 0, 500, 1000]"
    with pytest.raises(ValueError, match="what the processor leaves in the picture"):
        codec.write([Box((0.0, 0.0, 0.2, 1.0), None, 0)], views)


def test_what_a_codec_can_not_write_is_refused():
    with pytest.raises(ValueError, match="points"):
        codec_of("molmo2").write([Box(BOX, None, 0)], [VIEW])
    with pytest.raises(ValueError, match="boxes; codecs for all kinds are loc"):
        codec_of("internvl").write([Point((0.1, 0.2), None, 0)], [VIEW])
    with pytest.raises(ValueError, match="a label without"):
        codec_of("paligemma").write([Box(BOX, "cat; dog", 0)], [VIEW])


PIECES = [
    *"[]{}(),:;\"'\\\n <>/.-0123456789", '"bbox_2d":', '"label"', "'box_2d'", "NaN", "null", "Infinity",
    "1e9", "<ref>", "</ref>", "<box>", "</box>", "<loc_1>", "<loc0001>", "<loc_", "<poly>", "<|box_start|>",
    "<|box_end|>", "<|object_ref_start|>", "<|ref|>", "<|det|>", "<phrase>", "<object>",
    "<patch_index_0001>", "<points coords=\"", "<point x=\"", "y=\"", "Picture 1: ", "Picture 9: ", "image",
    "word", "猫", "²", "१२", "\u2028", "\x00",
]  # fmt: skip
GARBAGE = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
VIEWS = st.lists(
    st.sampled_from([VIEW, View((1, 1), (28, 28)), View((9, 5), (5, 5), (0.2, 0, 0.8, 1))]), max_size=3
)


def check(found, views):
    """What is found lies in its picture, and is in order."""
    assert all(isinstance(fault, str) and fault for fault in found.faults)
    for item in found.items:
        assert isinstance(item, Box | Point | Region)
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in item.numbers)
        assert 0 <= item.image < len(views)
        if isinstance(item, Box):
            assert item.xyxy[0] <= item.xyxy[2]
            assert item.xyxy[1] <= item.xyxy[3]
        if item.label is not None:
            assert item.label.encode()


@ALL
@settings(max_examples=60, deadline=None)
@given(text=GARBAGE, views=VIEWS)
def test_garbage_never_raises(codec, text, views):
    check(codec.read(text, views), views)


@ALL
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_broken_answers_never_raise(codec, data):
    items = [kind(place, "a cat", 0) for kind, place in ((Box, BOX), (Point, BOX[:2]), (Region, BOX * 2))]
    items = [item for item in items if isinstance(item, codec.writes)]
    text = codec.write(items * 2, [VIEW]).text
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 6))
        text = text[:place] + data.draw(st.sampled_from(["", *PIECES])) + text[place + cut :]
    check(codec.read(text, [VIEW]), [VIEW])
    found = codec.read(text[: data.draw(st.integers(0, len(text)))], [VIEW])
    check(found, [VIEW])


SLOW = [
    "[", "{", "(", "[[", '{"', '"', "'", "\\", "'\\", '"\\', "[1,", "(1,", "[1 ", "9", "[9", "1e", " ",
    "[ ", "( ", "<", "<loc_1", "<loc_1>", "<loc_1> ", "<ref>", "<ref>a", "</ref>", "<points ", "<points>",
    '<points coords="', "x1=\"", "x1=\" ", "<|box_start|>", "<|box_start|>(", "(1,2),", "(1,2) ,",
    "<patch_index_1>", "<object>", "Picture 1: ", "Picture 1", '{"label": "a", ', '{"a": [', "[1, 2], ",
    "[[1, 2], ", "a: ", "[a: ", "{a: 1 ", "é", "{'", "['a", "<poly><loc_1><loc_2>", "none",
]  # fmt: skip


@ALL
def test_time_grows_with_the_text(codec):
    views = [VIEW, VIEW]
    for piece in SLOW:
        text = piece * (16_000 // len(piece))
        start = time.process_time()
        found = codec.read(text, views)
        took = time.process_time() - start
        assert took < 4, (piece, took)  # in square time it would be minutes
        check(found, views)


@given(
    value=st.recursive(
        st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    )
)
@settings(max_examples=100, deadline=None)
def test_all_lists_of_numbers_of_right_json_are_found(value):
    wanted = []

    def walk(one):
        if isinstance(one, dict):
            for inner in one.values():
                walk(inner)
        elif isinstance(one, list):
            for inner in one:
                walk(inner)
            numbers = tuple(inner for inner in one if isinstance(inner, float))
            if numbers and all(isinstance(inner, float) for inner in one):
                wanted.append(numbers)

    walk(value)
    found = [listed.numbers for record in records_in(json.dumps(value)) for listed in record.lists]
    for numbers in wanted:
        assert numbers in found
