"""Boxes, points and regions become texts of which each number's tokens are known."""

import io

import PIL.Image
import pytest
import torch
from PIL import ExifTags

from lightning_vlm.data.boxes.codec import BoxCodec, Coordinate, Found, Written
from lightning_vlm.data.boxes.thousandths import Thousandths
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Nothing, Point, Region, Text
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind

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


def chat(question, answer, **more):
    parts = [[Text(part) if isinstance(part, str) else part for part in turn] for turn in (question, answer)]
    messages = Message("user", tuple(parts[0])), Message("assistant", tuple(parts[1]))
    return Conversation(messages, source="boxes.jsonl:3", **more)


class Marked(BoxCodec):
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>` behind the label, as Qwen2-VL does."""

    name = "marked"
    tokens = ("<|box_start|>", "<|box_end|>")

    def write(self, items, views):
        text, coordinates = "", []
        for number, item in enumerate(items):
            if not isinstance(item, Box):
                raise ValueError("boxes")
            text += f"{item.label or ''}<|box_start|>"
            for axis, value in enumerate(views[item.image].to_seen(item.numbers)):
                text += ",("[axis % 2 == 0] if axis != 2 else ",("
                digits = str(round(1000 * value))
                coordinates.append(Coordinate(len(text), len(text) + len(digits), number, axis, 1000))
                text += digits + (")" if axis % 2 else "")
            text += "<|box_end|>"
        return Written(text, tuple(coordinates))

    def read(self, text, views):
        return Found(())


def decoded(renderer, example, kind):
    return renderer.tokenizer.decode(example.input_ids[example.kinds == kind])


@pytest.fixture(scope="module")
def renderer(processor_of):
    processor = processor_of("qwen2_vl")
    processor.tokenizer.add_special_tokens({"additional_special_tokens": list(Marked.tokens)})
    return Renderer(processor, boxes=Marked())


def numbers_of(renderer, example):
    """The values that the tokens of coordinates have by their worth: Tensor of shape [items, 4]."""
    found = example.coordinates
    texts = [renderer.tokenizer.decode([token]) for token in example.input_ids[found.positions].tolist()]
    digits = ["".join(filter(str.isdigit, text)) for text in texts]
    lengths = [len(text) if text.isdigit() else 0 for text in texts]  # no digit is 0 in a bin
    assert lengths == found.digits.tolist()
    values = torch.zeros(len(found.targets), 4)
    for text, item, axis, worth in zip(digits, found.item, found.axis, found.worth, strict=True):
        values[item, axis] += int(text) * worth
    return values


def test_a_codec_may_write_special_tokens_and_people_may_not(renderer):
    words = "<|box_start|>(1,2),(3,4)<|box_end|>"
    box = Box((0.1, 0.2, 0.3, 1.0), label="a dog")
    example = renderer.example(chat([picture(60, 40), words], [box, words]))
    special = renderer.tokenizer.convert_tokens_to_ids(["<|box_start|>", "<|box_end|>"])
    assert torch.isin(example.input_ids, torch.tensor(special)).sum() == 2
    assert decoded(renderer, example, Kind.BOX) == "a dog<|box_start|>(100,200),(300,1000)<|box_end|>"
    assert decoded(renderer, example, Kind.RESPONSE).startswith(words)
    with pytest.raises(DataError, match=r"boxes.jsonl:3: messages\[1\].content\[0\].label: found a label"):
        renderer.example(chat([picture(60, 40)], [Box((0, 0, 1, 1), label="<|im_end|>")]))


def test_neighbours_are_one_run_and_each_number_has_its_tokens(renderer):
    boxes = [Box((0.1, 0.2, 0.3, 1.0)), Box((0.004, 0.05, 0.625, 0.75), "dog")]
    example = renderer.example(chat([picture(60, 40), "What? ", boxes[0]], [*boxes, " and ", boxes[0]]))
    found = example.coordinates
    targets = torch.tensor([box.xyxy for box in (*boxes, boxes[0])])
    torch.testing.assert_close(found.targets, targets)
    torch.testing.assert_close(numbers_of(renderer, example), targets)
    assert set(found.digits.tolist()) == {1}
    assert (example.kinds[found.positions] == Kind.BOX).all()
    assert found.left_out == 0


def test_numbers_are_of_their_own_picture_when_upright(renderer):
    pictures = [picture(60, 40), picture(30, 90, turned=True)]
    boxes = [
        Box((6, 4, 30, 40), pixels=True, image=0),
        Box((6, 9, 30, 90), pixels=True),  # in the last one
        Box((0.5, 0.25, 1.0, 1.0), image=1),
    ]
    example = renderer.example(chat([*pictures, "Where?"], boxes))
    expected = torch.tensor([[0.1, 0.1, 0.5, 1.0], [0.2, 0.1, 1.0, 1.0], [0.5, 0.25, 1.0, 1.0]])
    torch.testing.assert_close(numbers_of(renderer, example), expected)


def test_what_is_written_is_the_same_whatever_comes_later(processor_of):
    """Codecs name pictures where there are several: those that the model has seen by then."""
    renderer = Renderer(processor_of("qwen3_vl"))
    box = Box((0.1, 0.2, 0.3, 1.0))
    first = chat([picture(60, 40), "Where? "], [box])
    more = chat([picture(60, 40), "And here? "], [box])
    both = Conversation(first.messages + more.messages, source="boxes.jsonl:4")
    alone, together = renderer.example(first), renderer.example(both)
    length = len(alone.input_ids)
    assert torch.equal(together.input_ids[:length], alone.input_ids)
    written = decoded(renderer, together, Kind.BOX)
    assert (written.count("image"), written.count('"image": 2')) == (1, 1)
    asked, reference = renderer.prompt(both)
    assert '"image": 2' in reference
    assert torch.equal(asked.input_ids[:length], alone.input_ids)
    later = Conversation(
        (*first.messages[:1], Message("assistant", (Box((0, 0, 1, 1), image=1),)), *more.messages)
    )
    with pytest.raises(DataError, match="found a box in picture 1, of 1 so far"):
        renderer.example(later)


def test_a_box_before_any_picture_is_of_the_first(renderer):
    question = ["What is at ", Box((30, 20, 60, 40), pixels=True), " here? ", picture(60, 40), picture(9, 9)]
    example = renderer.example(chat(question, ["A dog."]))
    assert "(500,500),(1000,1000)" in decoded(renderer, example, Kind.INSTRUCTION)
    assert example.coordinates is None


def test_that_nothing_is_there_is_learned_and_read(processor_of):
    renderer = Renderer(processor_of("qwen2_vl"), boxes=Thousandths())
    without = chat([picture(60, 40), "Where is the dog?"], [Nothing()])
    example = renderer.example(without)
    assert decoded(renderer, example, Kind.BOX) == "[]"
    assert example.coordinates is None
    reader = renderer.prompt(without)[0].reader
    assert reader.right == ()
    assert reader.read("[]") == Found(())
    assert renderer.prompt(chat([picture(60, 40), "Is there a dog?"], ["No."]))[0].reader is None


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ([], [Box((0, 0, 1, 1))], r"messages\[1\].content\[0\]: found a box in a conversation without"),
        (
            [picture(60, 40)],
            ["At ", Box((0, 0, 60.5, 2), pixels=True)],
            r"messages\[1\].content\[1\]: found the box \[0, 0, 60.5, 2\]; expected pixels of picture 0, "
            "which is 60x40 when upright",
        ),
        (
            [picture(60, 40, turned=True)],
            [Box((0, 0, 40, 60), pixels=True)],
            r"found the box \[0, 0, 40, 60\]; expected pixels of picture 0, which is 60x40",
        ),
        (
            [picture(60, 40)],
            [Box((0, 0, 1, 1), image=1)],
            r"content\[0\].image: found a box in picture 1, of 1 so far",
        ),
        (
            [picture(60, 40), Box((0, 0, 1, 1)), Point((0.1, 0.2))],
            ["?"],
            r"messages\[0\].content\[1\]: found a box and a point; expected boxes \(data.boxes: marked\)",
        ),
    ],
)
def test_what_has_no_place_is_refused(renderer, question, answer, message):
    sample = chat([*question, "?"], answer)
    for render in (renderer.example, renderer.prompt):
        with pytest.raises(DataError, match=f"boxes.jsonl:3: .*{message}"):
            render(sample)


def test_the_right_answer_is_the_text_and_the_boxes(renderer):
    boxes = [Box((6, 4, 30, 40), "dog", pixels=True), Box((0.0, 0.5, 1.0, 1.0), image=0)]
    sample = chat([picture(60, 40), "Find ", Box((0.5, 0.5, 1, 1)), "."], [*boxes, "!"])
    prompt, reference = renderer.prompt(sample)
    assert reference == (
        "dog<|box_start|>(100,100),(500,1000)<|box_end|><|box_start|>(0,500),(1000,1000)<|box_end|>!"
    )
    assert prompt.reader.right == (Box((0.1, 0.1, 0.5, 1.0), "dog", 0), Box((0.0, 0.5, 1.0, 1.0), None, 0))
    assert [view.size for view in prompt.reader.views] == [(60, 40)]
    assert prompt.coordinates is None
    shown = "".join(part.text for part in prompt.conversation.messages[0].parts[1:])
    assert shown == "Find <|box_start|>(500,500),(1000,1000)<|box_end|>."
    assert "".join(decoded(renderer, prompt, Kind.INSTRUCTION)).endswith(shown)


def test_boxes_are_read_where_the_answer_has_some_or_is_unknown(renderer):
    prompt, _ = renderer.prompt(chat([picture(60, 40), "Find it."], ["Red."]))
    assert prompt.reader is None
    asked = Conversation((Message("user", (picture(60, 40), Text("Find it."))),))
    assert renderer.prompt(asked)[0].reader.right is None
    assert renderer.prompt(Conversation((Message("user", (Text("Find it."),)),)))[0].reader is None


def test_points_have_two_targets_and_regions_none(processor_of):
    class Regions(Thousandths):
        def write(self, items, views):
            if isinstance(items[0], Region):
                return Written("[1]", (Coordinate(1, 2, 0, 0, 1000),))
            return super().write(items, views)

    renderer = Renderer(processor_of("qwen2_5_vl"), boxes=Regions())
    region = Region((0.1, 0.1, 0.2, 0.2, 0.3, 0.1))
    example = renderer.example(chat([picture(60, 40), "?"], [region, " ", Point((0.25, 0.5))]))
    found = example.coordinates
    assert found.targets[:, :2].tolist() == [[0.25, 0.5]]
    assert found.targets[:, 2:].isnan().all()
    assert found.left_out == 0


def test_boxes_whose_digits_share_tokens_with_other_characters_are_counted(processor_of):
    renderer = Renderer(processor_of("shipped"))  # its tokenizer joins spaces and numbers
    boxes = [Box((0.125, 0.25, 0.5, 1.0)), Box((0.125, 0.25, 0.5, 1.0))]
    example = renderer.example(chat([picture(60, 40), "?"], [boxes[0], "; ", boxes[1]]))
    assert len(example.coordinates.positions) == 0
    assert example.coordinates.left_out == 2


@pytest.mark.parametrize("family", ["paligemma", "kosmos-2", "blip-2", "gemma3"])
def test_tokens_of_numbers_are_found_in_each_family(processor_of, family):
    renderer = Renderer(processor_of(family, "plain"))
    box = Box((0.125, 0.25, 0.5, 1.0))
    example = renderer.example(chat([picture(60, 40), "?"], ["At ", box, "."]))
    if example.coordinates.left_out:
        pytest.skip("its tokenizer joins digits with other characters")
    torch.testing.assert_close(numbers_of(renderer, example), torch.tensor([box.xyxy]), atol=1e-3, rtol=0)
