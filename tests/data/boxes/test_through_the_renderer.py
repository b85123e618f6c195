"""Boxes of any family come through rendering and reading, in odd pictures and in several of them."""

import io

import PIL.Image
import pytest
from PIL import ExifTags

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.render.renderer import Renderer
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


def picture(width, height, turned=False):
    """A picture that is so large when upright; `turned` by its EXIF data."""
    exif = PIL.Image.Exif()
    if turned:
        width, height = height, width
        exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "teal").save(file, "JPEG", exif=exif)
    return Image(data=file.getvalue())


def check(renderer, pictures, boxes):
    """Render a chat and read its right answer: each box is where it was, within half a step of its codec."""
    answer = Message("assistant", tuple(boxes))
    chat = Conversation((Message("user", (*pictures, Text("Where?"))), answer), source="a:1")
    prompt, reference = renderer.prompt(chat)
    found = prompt.reader.read(reference)
    assert not found.faults
    for right, read in zip(prompt.reader.right, found.items, strict=True):
        view = prompt.reader.views[right.image]
        assert (read.label, read.image) == (right.label, right.image)
        x1, y1, x2, y2 = view.crop
        for place, (was, now) in enumerate(zip(right.numbers, read.numbers, strict=True)):
            whole = renderer.boxes.codec.wholes(view)[place % 2]
            steps = 1 if renderer.boxes.codec.name == "kosmos2" else 0.5
            assert abs(was - now) <= steps * (x2 - x1, y2 - y1)[place % 2] / whole + 1e-9
    return prompt.reader.views


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_written_is_read_as_it_was(processor_of, family):
    template = "plain" if tiny.FAMILIES[family].template is None else None
    renderer = Renderer(processor_of(family, template))
    if Box not in renderer.boxes.codec.writes:
        pytest.skip(f"{family} points, and writes no boxes")
    boxes = [Box((0.3, 0.25, 0.625, 0.75), "cat"), Box((31.5, 20, 40, 36), "cat", pixels=True)]
    (view,) = check(renderer, [picture(61, 43, turned=True)], boxes)
    assert view.size == (61, 43)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "internvl", "llava", "gemma3"])
def test_of_several_pictures(processor_of, family):
    renderer = Renderer(processor_of(family))
    pictures = [picture(61, 43), picture(30, 91, turned=True), picture(50, 50)]
    boxes = [Box((0.3, 0.3, 0.6, 0.6), "cat", image) for image in (1, 1, 2, 0)]
    assert len(check(renderer, pictures, boxes)) == 3
    assert len(check(renderer, pictures, [Box((0.3, 0.3, 0.6, 0.6), None, 0)])) == 3
