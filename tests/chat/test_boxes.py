"""Boxes of answers, in words and drawn."""

import PIL.Image
import pytest

from lightning_vlm.chat.boxes import drawn, lines_of, save
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box, Point
from lightning_vlm.metrics.prediction import Prediction


def prediction(*items, faults=(), views=1):
    """An answer with something in its pictures of 200 × 100 pixels."""
    seen = (View((200, 100), (64, 64)),) * views
    return Prediction("chat", "default", "...", None, found=Found(items, tuple(faults)), views=seen)


def test_they_are_said_in_pixels_of_the_picture_as_it_came():
    said = lines_of(prediction(Box((0.1, 0.2, 0.5, 0.6), "cat", image=0), Point((0.5, 0.5), image=0)))
    assert said == ["box 20, 20, 100, 60  cat", "point 100, 50"]
    said = lines_of(prediction(Box((0, 0, 1, 1), image=1), faults=["a box of three numbers"], views=2))
    assert said == ["box 0, 0, 200, 100 in picture 2", "not read: a box of three numbers"]
    assert lines_of(None) == []


def test_they_are_drawn_where_they_are(tmp_path):
    answer = prediction(Box((0.1, 0.2, 0.5, 0.6), image=1), views=2)
    pictures = [PIL.Image.new("RGB", (200, 100), "white") for _ in range(2)]
    first, second = drawn(answer, pictures)
    assert first is None
    assert second.getpixel((20, 40)) != (255, 255, 255)
    assert second.getpixel((60, 40)) == (255, 255, 255)
    assert pictures[1].getpixel((20, 40)) == (255, 255, 255)
    assert save(answer, pictures, tmp_path / "a.png") == [tmp_path / "a.png"]
    assert PIL.Image.open(tmp_path / "a.png").size == (200, 100)


@pytest.mark.parametrize("image", [5, -1])
def test_a_picture_that_is_not_there_is_no_error(image):
    found = Box((0.1, 0.2, 0.5, 0.6), image=0)
    object.__setattr__(found, "image", image)
    assert lines_of(prediction(found)) == []
    assert drawn(prediction(found), [PIL.Image.new("RGB", (200, 100))]) == [None]
