"""A long prompt loses its earliest rounds without pictures, until there is room for its answer."""

import io
import random
from dataclasses import replace

import PIL.Image
import pytest
import torch

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.data.render.prompt_rounds import LEFT_OUT
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


WORDS = ("red", "a square", "1234", "🙂", "of the picture,")


def chat(rng, rounds, system=False, pictures=(0,)):
    """A conversation of random words, with pictures in some rounds, and its last answer."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(file, "PNG")
    messages = [Message("system", (Text("Be brief."),))] * system
    for number in range(rounds):
        shown = (Image(data=file.getvalue()),) * (number in pictures)
        words = " ".join(
            rng.choices(["red", "a square", "1234", "🙂", "of the picture,"], k=rng.randint(1, 12))
        )
        messages.append(Message("user", (*shown, Text(f"{number}: {words}"))))
        messages.append(Message("assistant", (Text(words),)))
    return Conversation(tuple(messages), source="chat.jsonl:1")


def one_round_after_the_other(whole, conversation, limit):
    """The rule itself: render, and drop the earliest round of words until it fits. None if it never does."""
    messages = list(conversation.messages)
    while True:
        example, _ = whole.prompt(replace(conversation, messages=tuple(messages)))
        if len(example.input_ids) <= limit:
            return example
        words = [
            place
            for place, message in enumerate(messages[:-2])
            if message.role == "user" and not any(isinstance(part, Image) for part in message.parts)
        ]
        if not words:
            return None
        del messages[words[0] : words[0] + 2]


@pytest.mark.parametrize("model", ["shipped", "qwen2_5_vl", "llava", "gemma3"])
def test_a_prompt_is_cut_as_if_it_lost_one_round_after_the_other(processor_of, model):
    processor, rng = processor_of(model), random.Random(model)
    whole = Renderer(processor)
    for rounds, options in ((1, {}), (9, {}), (7, {"pictures": (0, 3)}), (6, {"system": model != "llava"})):
        conversation = chat(rng, rounds, **options)
        longest = len(whole.prompt(conversation)[0].input_ids)
        for limit in sorted({longest, longest - 1, *(rng.randint(10, longest) for _ in range(4))}):
            room = rng.randint(1, 50)
            renderer = Renderer(processor, limit + room)
            renderer.answer_tokens = room
            expected = one_round_after_the_other(whole, conversation, limit)
            if expected is None:
                with pytest.raises(TooLong, match=f"{room} of them for its answer"):
                    renderer.prompt(conversation)
                continue
            example, reference = renderer.prompt(conversation)
            assert torch.equal(example.input_ids, expected.input_ids)
            assert example.conversation == expected.conversation
            assert reference == whole.prompt(conversation)[1]
            assert (LEFT_OUT in example.changes) == (limit < longest)


def test_a_huge_chat_is_cut_too_and_not_rendered_as_a_whole(processor_of):
    conversation = chat(random.Random(0), 3000)
    renderer = Renderer(processor_of("shipped"), 600)
    with pytest.raises(TooLong):
        renderer.prompt(conversation)
    renderer.answer_tokens = 100
    example, _ = renderer.prompt(conversation)
    assert 400 < len(example.input_ids) <= 500
    assert example.conversation.messages[0] == conversation.messages[0]  # the round with the picture stays


class _Chats(Conversations):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return replace(chat(random.Random(index), 12), source=f"chat.jsonl:{index + 1}")


def test_the_data_module_keeps_room_and_counts_what_it_left_out(processor_of):
    options = {"predict": _Chats(), "processor": processor_of("shipped"), "max_length": 200, "batch_size": 2}
    (batch,) = VLMDataModule(**options, answer_tokens=60).predict_dataloader()
    assert batch.prompts["input_ids"].shape[1] <= 140
    assert [source for source, change in batch.changes if change == LEFT_OUT] == batch.sources
    (batch,) = VLMDataModule(**options).predict_dataloader()
    assert len(batch.skipped) == 2
    for wrong in ({"answer_tokens": 200}, {"answer_tokens": 0}, {"answer_tokens": 5, "max_length": None}):
        with pytest.raises(UserError, match=r"data\.answer_tokens is \d+; expected"):
            VLMDataModule(**options | wrong)
