"""Each codec writes boxes as its family does, and reads them back within half of its smallest step."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor
from transformers.models.kosmos2.processing_kosmos2 import (
    coordinate_to_patch_index,
    extract_entities_with_patch_indices,
    patch_index_to_coordinate,
)

from lightning_vlm.data.boxes.bins import Kosmos2
from lightning_vlm.data.boxes.codecs import CODECS, codec_of
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Point, Region
from lightning_vlm.errors import UserError

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=[f"as {name}" for name in CODECS])
BOX = Box((0.125, 0.25, 0.5, 1.0), "a cat", 0)
BARE = Box((0.125, 0.25, 0.5, 1.0), None, 0)
POINT = Point((0.25, 0.5), "a cat", 0)
SEEN = [View((640, 480), (644, 476))]


@pytest.mark.parametrize(
    ("name", "items", "text"),
    [
        (
            "qwen2_vl",
            [BOX],
            "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(125,250),(500,1000)<|box_end|>",
        ),
        ("qwen2_vl", [BARE], "<|box_start|>(125,250),(500,1000)<|box_end|>"),
        (
            "qwen2_5_vl",
            [BOX, BARE],
            '[{"bbox_2d": [80, 119, 322, 476], "label": "a cat"}, {"bbox_2d": [80, 119, 322, 476]}]',
        ),
        ("qwen2_5_vl", [POINT], '[{"point_2d": [161, 238], "label": "a cat"}]'),
        ("qwen3_vl", [BOX], '[{"bbox_2d": [125, 250, 500, 1000], "label": "a cat"}]'),
        ("glm", [BARE, BARE], "<|begin_of_box|>[[125,250,500,1000],[125,250,500,1000]]<|end_of_box|>"),
        (
            "glm",
            [BOX],
            '<|begin_of_box|>[{"bbox_2d": [125, 250, 500, 1000], "label": "a cat"}]<|end_of_box|>',
        ),
        (
            "internvl",
            [BOX, BOX],
            "<ref>a cat</ref><box>[[125, 250, 500, 1000], [125, 250, 500, 1000]]</box>",
        ),
        (
            "paligemma",
            [BOX, BOX],
            "<loc0256><loc0128><loc1023><loc0512> a cat ; <loc0256><loc0128><loc1023><loc0512> a cat",
        ),
        ("florence2", [BOX], "a cat<loc_125><loc_250><loc_500><loc_999>"),
        ("kosmos2", [BOX], "<phrase>a cat</phrase><object><patch_index_0260><patch_index_1007></object>"),
        ("gemma", [BOX], '[{"box_2d": [250, 125, 1000, 500], "label": "a cat"}]'),
        ("gemma", [POINT], '[{"point": [500, 250], "label": "a cat"}]'),
        ("deepseek", [BOX], "<|ref|>a cat<|/ref|><|det|>[[125, 250, 500, 999]]<|/det|>"),
        (
            "Molmo2",
            [POINT, Point((0.05, 1.0), "a cat", 0)],
            '<points coords="1 1 250 500 2 050 1000">a cat</points>',
        ),
        ("molmo", [POINT], '<point x="25.0" y="50.0" alt="a cat">a cat</point>'),
        ("loc", [BARE], "<loc_125><loc_250><loc_500><loc_999>"),
        ("decimals", [BARE], "[0.125, 0.250, 0.500, 1.000]"),
        ("thousandths", [BARE], "[125, 250, 500, 1000]"),
    ],
)
def test_as_published(name, items, text):
    codec = codec_of(name.lower())
    assert codec.write(items, SEEN).text == text
    found = codec.read(text, SEEN)
    assert not found.faults
    assert [item.label for item in found.items] == [item.label for item in items]


def test_an_unknown_name():
    with pytest.raises(UserError, match=r"found .qwen3vl.;.*did you mean qwen3_vl\?"):
        codec_of("qwen3vl")


@ALL
def test_nothing_is_written_and_read(codec):
    text = codec.write([], SEEN).text
    assert text == codec.nothing
    assert codec.read(text, SEEN) == ((), ())
    assert codec.read("Is it a cat? Who knows!", SEEN) == ((), ("no box",))
    assert codec.read("", []).items == ()


SIDE = st.integers(1, 20_000)


@st.composite
def views(draw):
    """How a picture of any size is seen: whole, padded, or with its edges cut off."""
    size, seen = draw(st.tuples(SIDE, SIDE)), draw(st.tuples(SIDE, SIDE))
    start, stop = draw(st.tuples(*[st.floats(-1, 0.4)] * 2)), draw(st.tuples(*[st.floats(0.6, 2)] * 2))
    return View(size, seen, draw(st.sampled_from([(0.0, 0.0, 1.0, 1.0), (*start, *stop)])))


LABELS = st.none() | st.sampled_from(
    ["a cat", "the “red” dog's", "猫", 'x "y" \\ z', "c'est ça", "1", "null"]
)


@st.composite
def runs(draw, codec):
    """A conversation's views and a run of what the codec can write, all of it seen."""
    seen = draw(st.lists(views(), min_size=1, max_size=3))
    items = []
    for _ in range(draw(st.integers(1, 4))):
        image = draw(st.integers(0, len(seen) - 1)) if codec.name != "molmo" else len(seen) - 1
        inside = draw(st.lists(st.floats(0, 1), min_size=4, max_size=12))
        inside = inside[: len(inside) // 2 * 2]
        x1, y1, x2, y2 = seen[image].crop
        low, high = (max(x1, 0), max(y1, 0)), (min(x2, 1), min(y2, 1))
        place = [low[at % 2] + value * (high[at % 2] - low[at % 2]) for at, value in enumerate(inside)]
        label = draw(LABELS)
        label = None if label and any(end in label for end in codec.not_in_labels) else label
        kind = draw(st.sampled_from(codec.writes))
        if kind is Point:
            items.append(Point(tuple(place[:2]), label, image))
        elif kind is Region:
            corners = 4 if codec.name == "qwen2_vl" else max(3, len(place) // 2)
            items.append(Region(tuple((place * 2)[: 2 * corners]), label, image))
        else:
            x, y = sorted(place[:4:2]), sorted(place[1:4:2])
            items.append(Box((x[0], y[0], x[1], y[1]), label, image))
    return seen, items


def steps(codec, item, view):
    """How far apart neighbouring numbers are in fractions of the picture, along x and y."""
    wholes = [1000, 1000] if codec.name in ("florence2", "decimals", "molmo") else codec.wholes(view)
    x1, y1, x2, y2 = view.crop
    return abs(x2 - x1) / wholes[0], abs(y2 - y1) / wholes[1]


@ALL
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_round_trip_within_half_a_step(codec, data):
    seen, items = data.draw(runs(codec))
    written = codec.write(items, seen)
    found = codec.read(written.text, seen)
    assert not found.faults
    assert [(type(one), one.image) for one in found.items] == [(type(one), one.image) for one in items]
    for wrote, read in zip(items, found.items, strict=True):
        step = steps(codec, wrote, seen[wrote.image])
        half = 0.5 if not _is_thin(codec, wrote, seen[wrote.image]) else 1
        for place, (was, now) in enumerate(zip(wrote.numbers, read.numbers, strict=True)):
            assert abs(was - now) <= half * step[place % 2] + 1e-9
        if codec.name not in ("florence2", "paligemma", "molmo", "molmo2", "kosmos2"):
            assert read.label == wrote.label


def _is_thin(codec, item, view):
    """Whether a box lies in one row or column of the grid of Kosmos-2, which reads it as whole cells."""
    if not isinstance(codec, Kosmos2):
        return False
    first, last = re.findall(r"index_([0-9]+)", codec.write([item], [view] * (item.image + 1)).text)
    return any(one == two for one, two in zip(divmod(int(first), 32), divmod(int(last), 32), strict=True))


@ALL
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_each_number_is_where_it_is_said_to_be(codec, data):
    seen, items = data.draw(runs(codec))
    text, coordinates = codec.write(items, seen)
    if isinstance(codec, Kosmos2):
        assert not coordinates
        return
    places = [(one.item, one.axis) for one in coordinates]
    assert sorted(places) == [
        (item, axis) for item, one in enumerate(items) for axis in range(len(one.numbers))
    ]
    for one, following in itertools.pairwise(coordinates):
        assert one.stop <= following.start
    for start, stop, place, axis, whole in coordinates:
        number = text[start:stop]
        if codec.bins:
            assert number in codec.bins
        else:
            assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", number)
            assert not re.match(r"[0-9.]", text[stop : stop + 1])
        value = float(re.sub(r"[^0-9.]", "", number)) / whole
        view = seen[items[place].image]
        expected = view.to_seen(items[place].numbers)[axis]
        step = {"decimals": 0.001, "molmo": 0.001}.get(codec.name, 1 / whole)
        assert abs(value - min(max(expected, 0), 1)) <= (0.5 + (codec.name == "florence2") / 2) * step + 1e-9


@settings(max_examples=100, deadline=None)
@given(corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_kosmos2_is_as_transformers_has_it(corners):
    x1, y1, x2, y2 = (*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:]))
    assume(x2 - x1 > 1e-6 and y2 - y1 > 1e-6)
    codec, view = codec_of("kosmos2"), [View((640, 480), (224, 224))]
    text = codec.write([Box((x1, y1, x2, y2), "a cat", 0)], view).text
    cells = coordinate_to_patch_index((x1, y1, x2, y2), 32)
    assert tuple(int(cell) for cell in re.findall(r"index_([0-9]+)", text)) == cells
    ((label, _, found),) = extract_entities_with_patch_indices(text)
    assert (label, found) == ("a cat", [cells])
    read = codec.read(text, view).items[0]
    assert read.xyxy == pytest.approx(patch_index_to_coordinate(*cells, 32))


@settings(max_examples=100, deadline=None)
@given(corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_florence2_is_as_transformers_has_it(corners):
    theirs = Florence2PostProcessor({}, SimpleNamespace(all_special_tokens=[]))
    x1, y1, x2, y2 = (*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:]))
    codec, view = codec_of("florence2"), [View((6400, 4800), (768, 768))]
    text = codec.write([Box((x1, y1, x2, y2), "a cat", 0)], view).text
    pixels = torch.tensor([[x1 * 6400, y1 * 4800, x2 * 6400, y2 * 4800]], dtype=torch.float64)
    bins = theirs.quantize(pixels, (6400, 4800))[0].tolist()
    assert [int(value) for value in re.findall(r"loc_([0-9]+)", text)] == pytest.approx(bins, abs=1)
    (found,) = theirs.parse_phrase_grounding_from_text_and_spans(text, (6400, 4800))
    read = codec.read(text, view).items[0].xyxy
    assert found["cat_name"] == "a cat"
    in_pixels = [value * side for value, side in zip(read, (6400, 4800) * 2, strict=True)]
    assert in_pixels == pytest.approx(found["bbox"][0], abs=1)
