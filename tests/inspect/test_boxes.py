"""What lies in a picture is drawn where it is: on the picture as it came, and as the model sees it."""

import re

import PIL.Image
import pytest

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Box, Point, Region
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.inspect.boxes import pictures
from lightning_vlm.inspect.page import page as render_page
from lightning_vlm.inspect.scan import scan_data
from tests.inspect.samples import ListSource, chat, png

RED, BLUE = (200, 0, 0), (0, 0, 200)


def padded(size):
    """As a processor sees pictures that pads them to a square of 128 pixels."""
    width, height = size
    side = max(size)
    x, y = (side - width) / 2 / width, (side - height) / 2 / height
    return View(size, (128, 128), (-x, -y, 1 + x, 1 + y))


@pytest.fixture
def conversation():
    image = PIL.Image.new("RGB", (200, 100), "white")
    image.paste(RED, (20, 10, 80, 60))
    image.paste(BLUE, (100, 50, 180, 100))
    other = PIL.Image.new("RGB", (50, 100), "white")
    question = (png(image), png(other), "Blue is at ", Box((0.5, 0.5, 0.9, 1.0), "blue", image=0), ".")
    answer = (Box((20, 10, 80, 60), "red", image=0, pixels=True), " and ", Point((0.5, 0.25)))
    return chat(question, answer)


def colour_inside(image, corners):
    """The colour within some corners, a little inside of them."""
    (x1, y1), (x2, y2) = corners
    inside = image.convert("RGB").crop((round(x1) + 2, round(y1) + 2, round(x2) - 2, round(y2) - 2))
    colours = (
        [max(channel) for channel in inside.getextrema()],
        [min(channel) for channel in inside.getextrema()],
    )
    assert max(abs(most - least) for most, least in zip(*colours, strict=True)) < 9
    return tuple(colours[0])


def test_marks_are_on_what_they_mean_in_both_pictures(module, conversation):
    data = VLMDataModule(train=ListSource(conversation), processor=module.processor)
    data.renderer.boxes._view_of = padded
    first, second = pictures(conversation, data.renderer)
    assert [mark.number for mark in (*first.marks, *second.marks)] == [1, 2, 3]
    assert [mark.is_answer for mark in first.marks] == [False, True]
    for shown in (first, first.seen):
        blue, red = (colour_inside(shown.image, mark.points(*shown.image.size)) for mark in shown.marks)
        assert max(abs(a - b) for a, b in zip((*blue, *red), (*BLUE, *RED), strict=True)) < 9
    assert first.seen.image.size == (128, 128)
    assert first.marks[1].words == "20, 10, 80, 60"
    (point,) = second.seen.marks
    assert point.points(128, 128) == [pytest.approx((64, 32), abs=0.1)]


def test_the_page_draws_each_kind_of_shape(module):
    image = png(PIL.Image.new("RGB", (200, 100), "white"))
    answer = (Box((0.1, 0.2, 0.3, 0.4), "<b>dog</b>"), " ", Point((0.5, 0.5)))
    data = VLMDataModule(train=ListSource(chat((image, "Where?"), answer)))
    page = render_page(scan_data(module, data))
    assert 'class=answer x="20" y="20" width="40" height="20"' in page
    assert 'class=answer cx="100" cy="50"' in page
    assert "1 &lt;b&gt;dog&lt;/b&gt;</text>" in page


def test_a_region_is_drawn_as_its_outline(module, monkeypatch):
    data = VLMDataModule(processor=module.processor)
    writer = data.renderer.boxes
    as_box = writer.codec.write
    monkeypatch.setattr(
        writer.codec, "write", lambda items, views: as_box([Point((0, 0), image=0)] * len(items), views)
    )
    image = png(PIL.Image.new("RGB", (200, 100), "white"))
    sample = chat((image, "Where?"), (Region((0.1, 0.1, 0.9, 0.1, 0.5, 0.9)),))
    (shown,) = pictures(sample, data.renderer)
    assert shown.marks[0].points(200, 100) == [(20, 10), (180, 10), (100, 90)]
    data = VLMDataModule(train=ListSource(sample), processor=module.processor)
    data.renderer.boxes.codec = writer.codec
    assert re.search(
        r'<polygon class=answer points="20,10 180,10 100,90 "', render_page(scan_data(module, data))
    )
