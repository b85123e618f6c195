"""The page is read back by Python's HTML parser."""

import re

import PIL.Image
import pytest
from PIL import ImageChops

from lightning_vlm.data.conversation import Box, Image
from lightning_vlm.inspect.page import page as render_page
from lightning_vlm.inspect.tokens import Piece
from lightning_vlm.kinds import Kind
from tests.inspect.samples import NASTY, WORLD, Reader, chat, png, preview_of, template_text


def test_the_page_says_what_the_tokens_are(module):
    conversation = chat(f"{NASTY}\n  tail ", f"{WORLD}\n\tcode {NASTY}")
    preview = preview_of(module, conversation)
    read = Reader(render_page(preview))
    hidden = dict.fromkeys(map(ord, "\x1b\u202e\u00a0"))  # shown by their marks alone
    assert read.texts == [template_text(module, conversation).translate(hidden)]
    ids = [token for piece in preview.samples[0].pieces for token in piece.ids]
    titles = [re.fullmatch(r"id ([\d, ]+) · (\w+) · weight (\S+)", title) for title, _ in read.titles[0]]
    assert [int(token) for title in titles for token in title[1].split(", ")] == ids
    for title, (_, classes) in zip(titles, read.titles[0], strict=True):
        assert title[2] in classes.split()
        assert (float(title[3]) > 0) == ("on" in classes.split())


def test_the_page_runs_nothing_and_needs_nothing(module):
    picture = png(PIL.Image.new("RGB", (20, 10), "red"))
    odd = {"task": '"><img src=x onerror=alert(1)>', "source": "<b>:1"}
    html = render_page(
        preview_of(
            module,
            chat((picture, NASTY), NASTY, **odd),
            chat((Image(data=NASTY.encode()), "?"), "!"),
            on_bad_sample="skip",
        )
    )
    read = Reader(html)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    assert "<script>alert('x')</script>" in read.texts[0]  # escaped, or it were a tag
    assert not [key for key, _ in read.attributes if key.startswith("on") or key == "href"]
    assert all(value.startswith("data:image/") for key, value in read.attributes if key == "src")
    assert read.tags.count("img") == 1
    for outside in ("url(", "@import", "xmlns"):
        assert outside not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://x.example/a.png", "")


def test_a_token_that_spells_a_whole_tag_is_text(module):
    preview = preview_of(module, chat("?", "!"))
    spelled = "<script>alert(1)</script><b>&amp;"
    preview.samples[0] = preview.samples[0]._replace(pieces=[Piece([5], spelled, Kind.RESPONSE, 1.0)])
    read = Reader(render_page(preview))
    assert read.texts == [spelled]
    assert "script" not in read.tags


def test_pictures_are_embedded_with_boxes_at_the_right_pixels(module):
    image = PIL.Image.new("RGB", (100, 80), "white")
    image.paste("red", (10, 20, 30, 60))
    image.paste("blue", (50, 8, 95, 40))
    other = PIL.Image.new("RGB", (40, 60), "green")
    conversation = chat(
        (png(image), "Where is red? Is blue at ", Box((0.5, 0.1, 0.95, 0.5)), "?"),
        Box((0.1, 0.25, 0.3, 0.75)),
        (png(other), "All?"),
        Box((0.0, 0.0, 1.0, 1.0)),
    )
    read = Reader(render_page(preview_of(module, conversation)))
    as_they_came, as_seen = read.pictures[::2], read.pictures[1::2]
    assert [shown.convert("RGB").tobytes() for shown in as_they_came] == [image.tobytes(), other.tobytes()]
    assert [shown.size for shown in as_seen] == [(64, 64)] * 2
    question, answer, *seen, last, last_seen = read.boxes
    assert [box[0] for box in seen] == ["question", "answer"]
    assert seen[0][1:] == pytest.approx((32, 6.4, 28.8, 25.6))
    assert seen[1][1:] == pytest.approx((6.4, 16, 12.8, 32))
    assert last_seen == ("answer", 0, 0, 64, 64)
    assert (question[0], answer[0], last) == ("question", "answer", ("answer", 0, 0, 40, 60))
    for (_, x, y, wide, high), colour in ((answer, (255, 0, 0)), (question, (0, 0, 255))):
        other_colours = ImageChops.difference(image, PIL.Image.new("RGB", image.size, colour)).convert("L")
        of_colour = other_colours.point(lambda value: 255 * (value == 0))
        assert of_colour.getbbox() == (x, y, x + wide, y + high)
    views = [value for key, value in read.attributes if key == "viewbox"]
    assert views[-4:] == ["0 0 100 80", "0 0 64 64", "0 0 40 60", "0 0 64 64"]


def test_large_pictures_are_embedded_smaller(module):
    large = png(PIL.Image.new("RGB", (3000, 1500), "red"))
    read = Reader(render_page(preview_of(module, chat((large, "Where?"), Box((0.5, 0.0, 1.0, 1.0))))))
    assert read.pictures[0].size == (768, 384)
    assert read.boxes[0] == ("answer", 1500, 0, 1500, 1500)  # over a view of the whole picture's pixels
    assert ("viewbox", "0 0 3000 1500") in read.attributes
