"""The terminal's view of a preview."""

import re

import PIL.Image
import pytest
from rich.cells import cell_len

from lightning_vlm.data.conversation import Text
from tests.inspect.samples import END, NASTY, WORLD, chat, png, preview_of, printed


def test_the_terminal_shows_without_colours_what_is_learned(module):
    answer = ("It is ", Text("red", entity=True), ".")
    shown = printed(
        preview_of(module, chat((png(PIL.Image.new("RGB", (8, 8))), "What is  it?\n"), answer), scan=1)
    )
    assert "image ×16 What·is··it?↵\n  <|im_end|>↵" in shown
    assert f"⟦It·is⟧⟦·red⟧×1.5⟦.{END}⟧↵" in shown


@pytest.mark.parametrize("width", [40, 100])
def test_lines_fit_and_long_samples_lose_their_middle(module, width):
    words = [f"{number}" for number in range(3000)]
    shown = printed(preview_of(module, chat(WORLD, " ".join(words)), samples=1), width)
    lines = shown.split("By task")[0].splitlines()
    body = [line for line in lines if re.match(r"  [⟦\d]", line)]
    assert len(body) < 60
    assert max(map(cell_len, body)) <= width
    assert all(line.endswith("·") for line in body[1:20])  # broken between words
    assert "lines more" in shown
    assert "2999" in shown


def test_the_terminal_is_not_moved_by_data(module):
    shown = printed(preview_of(module, chat(NASTY, NASTY)))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "⟨U+001B⟩" in shown
    assert "[bold]" in shown
