"""Processors that put the picture in front: one picture, in the first question, and no answer seen by it."""

import pytest
import torch

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.front_pictures import PictureHabits, picture_habits
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from tests.data.render.test_renderer import PICTURE, WIDE, talk
from tests.support.pictures import ONE_PICTURE

OTHERS = ("llava", "idefics3", "qwen2_vl", "paligemma", "mllama", "mistral3")


def test_habits_are_found_by_trying(processor_of):
    for family in (*ONE_PICTURE, *OTHERS):
        habits = picture_habits(processor_of(family))
        assert habits == PictureHabits(in_front=family in ONE_PICTURE, strips=family == "kosmos-2"), family


WRONG = {
    "none": (talk("What?", "Red."), r"0 pictures, 0 of them in the first question"),
    "two": (talk((PICTURE, WIDE, "What?"), "Red."), r"2 pictures, 2 of them"),
    "later": (talk("What?", "Red.", (PICTURE, "And now?"), "Blue."), r"1 picture, 0 of them"),
    "one more": (talk((PICTURE, "What?"), "Red.", (WIDE, "And now?"), "Blue."), r"2 pictures, 1 of them"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_number_of_pictures_is_refused(renderer_of, name):
    conversation, found = WRONG[name]
    for family in ONE_PICTURE:
        renderer = renderer_of(family, "plain")
        message = rf"talk.jsonl:1: .*{found}.* expected one there, which .* in front"
        with pytest.raises(DataError, match=message):
            renderer.example(conversation)


def test_a_template_that_writes_a_place_for_the_picture_is_refused(processor_of):
    processor = processor_of("blip-2", "plain")
    ready = processor.chat_template
    processor.chat_template = ready.replace("image_token = ''", "image_token = '<image>'")
    assert processor.chat_template != ready
    with pytest.raises(DataError, match=r"0 pictures and 1 place"):
        Renderer(processor).example(talk((PICTURE, "What?"), "Red."))


def test_the_q_former_reads_no_answer(renderer_of):
    renderer = renderer_of("instructblip", "plain")
    asked = (PICTURE, "What is this?")
    one, other = talk(asked, "A red square."), talk(asked, "Nothing.", "Are you sure?", "Yes.")
    question = renderer.processor.qformer_tokenizer("User:\nWhat is this?\nAssistant:\n")["input_ids"]
    prompts = [renderer.prompt(conversation)[0] for conversation in (one, other)]
    for example in (renderer.example(one), renderer.example(other), *prompts):
        assert example.inputs["qformer_input_ids"][0].tolist() == question


def test_a_question_longer_than_the_q_former_is_refused(renderer_of):
    renderer = renderer_of("instructblip", "plain")
    turns = (Message("user", (PICTURE, Text("why " * 600))), Message("assistant", (Text("So."),)))
    with pytest.raises(
        DataError, match=r"a question of \d+ tokens; expected at most 512 \(qformer_tokenizer\)"
    ):
        renderer.example(Conversation(turns))


def test_turn_weights_stand_behind_the_picture(renderer_of):
    """BLIP-2's tokens of the picture are put in front of what the text became."""
    renderer = renderer_of("blip-2", "plain")
    conversation = talk((PICTURE, "What?"), "Red.", "Sure?", "Yes.")
    question, answer, *rest = conversation.messages
    weighed = Conversation((question, Message("assistant", answer.parts, weight=3.0), *rest))
    example, plain = renderer.example(weighed), renderer.example(conversation)
    assert torch.equal(example.input_ids, plain.input_ids)
    assert len(example.turn_weights) == len(example.kinds)
    heavy = example.input_ids[example.turn_weights == 3]
    assert renderer.tokenizer.decode(heavy) == "Red.</s>"
    assert (example.kinds[:4] == Kind.IMAGE).all()
    ends = [
        renderer.tokenizer.decode(example.input_ids[:end]).rpartition("\n")[2] for end in example.answer_ends
    ]
    assert ends == ["Red.", "Yes."]
