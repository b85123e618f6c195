"""A processor to which a list in a list is the pages of one document: GOT-OCR 2's."""

import io

import PIL.Image
import pytest

from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.templates import chat_template
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from tests.support.rendering import supervised
from tests.support.tiny.family import make_tokenizer
from tests.support.tiny.ocr import GOT_OCR2


@pytest.fixture(scope="module")
def renderer():
    processor = GOT_OCR2.processor(make_tokenizer(GOT_OCR2), None)
    processor.chat_template = chat_template("plain", processor)
    return Renderer(processor)


def picture(colour):
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return Image(data=file.getvalue())


def talk(*parts):
    return Conversation(
        (Message("user", parts), Message("assistant", (Text("Red, then blue."),))), source="a:1"
    )


def test_several_pictures_are_those_of_one_sample(renderer):
    images = picture("red"), picture("blue")
    example = renderer.example(talk(*images, Text("Which colours?")))
    pictures = [load_image(image, "", "") for image in images]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which colours?"}]
    answer = [{"type": "text", "text": "Red, then blue."}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    text = renderer.processor.apply_chat_template(chat, tokenize=False)
    own = renderer.processor(images=pictures, text=[text], add_special_tokens=False, return_tensors="pt")
    assert example.input_ids.tolist() == own["input_ids"][0].tolist()
    assert example.inputs["pixel_values"].equal(own["pixel_values"])
    assert (example.kinds == Kind.IMAGE).sum() == 2 * 256
    assert supervised(renderer, example) == ["Red, then blue." + renderer.tokenizer.eos_token]


def test_text_alone_is_refused_as_its_processor_refuses_it(renderer):
    with pytest.raises(DataError, match=r"^a:1: .*GotOcr2Processor refuses .*expected a picture in it"):
        renderer.example(talk(Text("Hello?")))
