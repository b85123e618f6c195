"""The first answers with their pictures: on a page, and in a terminal."""

import base64
import io
import re
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from lightning_vlm.callbacks import answer_pictures
from lightning_vlm.callbacks.answer_page import first_places, save_page, shown_answer
from lightning_vlm.callbacks.answer_pictures import half_blocks, show_picture, way_of
from lightning_vlm.callbacks.answer_rows import answer_row
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Conversation, Message
from lightning_vlm.data.parts import Box, Image, Text
from lightning_vlm.metrics.prediction import Prediction


def test_the_command_writes_a_page(questions, predict, capsys):
    assert predict("--data.predict", "questions.jsonl", "--out", "a.jsonl") == 0
    shown = capsys.readouterr().out
    assert "page        a.html" in shown
    assert "\x1b" not in shown
    assert "▀" not in shown
    page = Path("a.html").read_text()
    assert "The 5 answers in a.jsonl." in page
    assert page.count("<image id=") == 5
    assert "step 0" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    # A page of one's own stays; that of earlier answers gives way.
    Path("b.html").write_text("mine")
    assert predict("--data.predict", "photos", "--prompt", "Where?", "--out", "b.jsonl", "--show", "0") == 0
    assert Path("b.html").read_text() == "mine"
    assert predict("--data.predict", "photos", "--prompt", "Where?", "--out", "a.jsonl", "--show", "0") == 0
    assert "right answer</h3>" not in Path("a.html").read_text()


@pytest.fixture
def boxed(photos):
    """A line with a box found and a right one, and its sample."""
    picture = Image(Path("wide.png"), root=photos)
    PIL.Image.new("RGB", (400, 200), "white").save("wide.png")
    turns = (Message("user", (picture, Text("Where?"))), Message("assistant", (Box((0.5, 0, 1, 1)),)))
    view = View((400, 200), (32, 32))
    found, right = Box((0.1, 0.2, 0.3, 0.9), "cat", 0), Box((0.5, 0.0, 1.0, 1.0), None, 0)
    answer = Prediction(
        "q:1", "grounding", "[1]", "[2]", found=Found((found,), ("one fault",)), right=(right,), views=(view,)
    )
    return answer_row(answer), Conversation(turns, "grounding", source="q:1")


def test_boxes_are_in_pixels_and_drawn(boxed):
    line, asked = boxed
    assert line["boxes"][0] == {
        "type": "box",
        "box": [40.0, 40.0, 120.0, 180.0],
        "pixels": True,
        "image": 0,
        "label": "cat",
    }
    assert line["right_boxes"] == [
        {"type": "box", "box": [200.0, 0.0, 400.0, 200.0], "pixels": True, "image": 0}
    ]
    shown = shown_answer(0, line, asked)
    (mark,) = shown.answer.found
    assert mark.numbers == pytest.approx((0.1, 0.2, 0.3, 0.9))
    assert [mark.numbers for mark in shown.row.right] == [(0.5, 0, 1, 1)]
    assert shown.answer.faults == ["one fault"]
    colours = {colour for _, colour in shown.picture.getcolors(1 << 16)}
    assert {(31, 170, 80), (230, 20, 190)} <= colours
    page = save_page(Path("answers.jsonl"), [shown], 30).read_text()
    assert "The first 1 of 30 answers in answers.jsonl." in page
    assert len(re.findall(r'<g class="(right|found)">', page)) == 3  # the right box beside the answer too


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "screen-256color"}, "blocks"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
    ],
)
def test_pictures_where_a_terminal_is_known_to_show_them(monkeypatch, environment, way):
    assert way_of(environment, True, "truecolor") == way
    assert way_of(environment, False, "truecolor") is None
    assert way_of(environment, True, "standard") is None
    picture = PIL.Image.new("RGB", (800, 300), "blue")
    monkeypatch.setattr(answer_pictures.os, "environ", environment)
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, color_system="truecolor", width=80, _environ=dict(environment)
    )
    show_picture(picture, console)
    text = file.getvalue()
    if way == "kitty":
        data = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", text))
        seen = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
        assert seen.size == (400, 150)
        assert seen.getpixel((9, 9)) == (0, 0, 255)
    elif way == "iterm":
        assert text.startswith("\x1b]1337;File=inline=1;width=400px;height=150px:")
    elif way == "sixel":
        assert text.startswith('\x1bPq"1;1;400;150#0;2;0;0;100#0~')
    else:
        assert 1 < text.count("\n") <= 12
        assert "▀" * 40 in re.sub(r"\x1b\[[\d;]*m", "", text)
    quiet = io.StringIO()
    show_picture(picture, Console(file=quiet, force_terminal=True, no_color=True, color_system="truecolor"))
    show_picture(picture, Console(file=quiet))
    assert quiet.getvalue() == ""


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 5)])
def test_pictures_of_any_shape(size):
    lines = half_blocks(PIL.Image.new("RGB", size)).plain.split("\n")
    assert 1 <= len(lines) <= 12
    assert 1 <= len(lines[0]) <= 40


def test_the_first_lines_of_several_processes():
    assert first_places([[2, 2], [2]], [[0, 1, 4, 5], [2, 3]], most=24) == [0, 1, 2, 3, 4, 5]
    assert first_places([], []) == []
