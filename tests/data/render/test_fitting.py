"""A long conversation is cut as if it lost one round after the other, at the cost of a few renderings."""

import io
import random
import time
from dataclasses import replace

import PIL.Image
import pytest
import torch

from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render import fitting
from lightning_vlm.data.render import renderer as render
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import Turn
from lightning_vlm.errors import DataError
from tests.support.pictures import with_its_pictures
from tests.support.rendering import (
    NO_EMPTY_ANSWERS,
    NO_EMPTY_LAST_ANSWERS,
    NO_EMPTY_QUESTIONS,
    ready_template,
)
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
MODELS = (*FAMILIES, "shipped")
WORDS = (
    "red",
    "a square",
    " ",
    "\n",
    "这是",
    "🙂",
    "<|im_end|>",
    "</s>",
    "answer",
    "1234",
    "of the picture,",
)


def picture(width, height):
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(file, "PNG")
    return Image(data=file.getvalue())


PICTURES = [picture(64, 64), picture(96, 64), picture(32, 80)]


def random_chat(rng, rounds, orders=False, fewest=0, asked=""):
    """A conversation of random words and pictures; with other orders of turns if asked.

    Answers have `fewest` words or more; questions end with what is `asked`.
    """
    messages = []
    if orders and rng.random() < 0.3:
        messages.append(Message("assistant", (Text("Hello."),)))
    for number in range(rounds):
        text = Text(" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) + asked)
        few = rng.choices(PICTURES, k=rng.choice((0, 0, 1, 2)) if number else 1)
        messages.append(Message("user", (*few, text)))
        if orders and rng.random() < 0.2:
            messages.append(Message("user", (Text("Well?"),)))
        messages.append(
            Message("assistant", (Text(" ".join(rng.choices(WORDS, k=rng.randint(fewest, 20)))),))
        )
        if orders and rng.random() < 0.2:
            messages.append(Message("assistant", (Text("That is all."),), weight=rng.choice((0.0, 1.0))))
    return Conversation(tuple(messages), source="chat.jsonl:1")


def round_by_round(whole, conversation, limit):
    """The rule itself: render, and drop the last round until it fits. None if not even the first does."""
    messages = conversation.messages
    while messages:
        example = whole.example(replace(conversation, messages=messages))
        if len(example.input_ids) <= limit:
            return example
        while messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        while messages and messages[-1].role == "user":
            messages = messages[:-1]
    return None


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_is_cut_as_if_it_lost_one_round_after_the_other(processor_of, model):
    processor = processor_of(model, ready_template(model))
    whole, rng = Renderer(processor), random.Random(model)
    for rounds, orders in ((1, False), (6, False), (4, True)):
        conversation = random_chat(
            rng,
            rounds,
            orders,
            fewest=int(model in NO_EMPTY_ANSWERS + NO_EMPTY_LAST_ANSWERS),
            asked="Well?" if model in NO_EMPTY_QUESTIONS else "",
        )
        conversation = with_its_pictures(model, conversation, PICTURES[0])
        longest = len(whole.example(conversation).input_ids)
        for limit in sorted({longest + 1, longest, longest - 1, *rng.choices(range(4, longest + 2), k=2)}):
            expected = round_by_round(whole, conversation, limit)
            if expected is None:
                with pytest.raises(
                    TooLong, match=rf"chat.jsonl:1: found .* tokens.*at most {limit} \(max_length"
                ):
                    Renderer(processor, limit).example(conversation)
                continue
            example = Renderer(processor, limit).example(conversation)
            assert example.conversation == expected.conversation
            assert example.truncated == len(conversation.messages) - len(expected.conversation.messages)
            assert torch.equal(example.input_ids, expected.input_ids)
            assert torch.equal(example.kinds, expected.kinds)
            assert example.inputs.keys() == expected.inputs.keys()
            for name, value in expected.inputs.items():
                assert torch.equal(example.inputs[name], value)


def test_a_template_that_writes_less_before_a_short_chat_keeps_more_rounds(processor_of):
    """Lengths read off a longer rendering are too large then; more is tried."""
    processor = processor_of("shipped")
    head = "{% if messages | length > 6 %}" + "many words before it all " * 8 + "{% endif %}"
    processor.chat_template = head + processor.chat_template
    whole, rng = Renderer(processor), random.Random(0)
    conversation = random_chat(rng, 8)
    for limit in range(60, len(whole.example(conversation).input_ids), 31):
        expected = round_by_round(whole, conversation, limit)
        if expected is not None:
            example = Renderer(processor, limit).example(conversation)
            assert example.conversation == expected.conversation


class Counting(Renderer):
    """Counts its renderings."""

    rendered = 0

    def _render(self, *args):
        self.rendered += 1
        return super()._render(*args)


def test_renderings_and_opened_pictures_do_not_grow_with_the_rounds(processor_of, monkeypatch):
    opened = []

    def load(*args):
        opened.append(args[2])
        return load_image(*args)

    monkeypatch.setattr(render, "load_image", load)
    renderer = Counting(processor_of("qwen2_5_vl"), max_length=300)
    turns = []
    for number in range(100):
        few = (PICTURES[0],) if number % 10 == 0 else ()
        turns += [
            Message("user", (*few, Text("What now, and why is it so?"))),
            Message("assistant", (Text("So."),)),
        ]
    example = renderer.example(Conversation(tuple(turns)))
    assert 0 < len(example.conversation.messages) < 40
    assert renderer.rendered <= 4
    assert len(opened) == len(set(opened)) <= 10


def chat(*texts):
    roles = ["user", "assistant"] * len(texts)
    turns = (Message(role, (Text(text),)) for role, text in zip(roles, texts, strict=False))
    return Conversation(tuple(turns), source="chat.jsonl:1")


LONG = " ".join(random.Random(0).choices(["red", "the", "picture", "shows", "of", "square"], k=2_000_000))


@pytest.mark.parametrize("model", ["qwen2_5_vl", "llava"])
def test_a_text_of_two_million_words_is_refused_within_seconds(processor_of, model):
    renderer, start = Renderer(processor_of(model), max_length=1000), time.process_time()
    with pytest.raises(
        TooLong, match=r"found more than [0-9,]+ tokens; expected at most 1000 \(max_length\)"
    ):
        renderer.example(chat("What?", LONG))
    with pytest.raises(TooLong) as error:
        renderer.example(chat("What?", LONG))
    assert error.value.length > 1000
    with pytest.raises(TooLong, match=r"found a prompt of more than [0-9,]+ tokens; expected at most 1000"):
        renderer.prompt(chat(LONG))
    example = renderer.example(chat("What?", "Red.", "And now?", LONG))
    assert (example.truncated, len(example.conversation.messages)) == (2, 2)
    without_limit = Renderer(processor_of(model))
    with pytest.raises(TooLong, match=r"at most 262,144 without data.max_length; set it"):
        without_limit.example(chat("What?", "Red.", "And now?", LONG))
    assert time.process_time() - start < 15


TEXTS = [
    "   " * 200,
    "a" * 500,
    "ab " * 300,
    "\n" * 400,
    "这是一个" * 100,
    "🙂" * 90,
    "\ue123" * 600,
    "x1-" * 200,
]


@pytest.mark.parametrize("model", MODELS)
def test_counting_in_pieces_gives_up_nothing_that_fits(processor_of, monkeypatch, model):
    """Whatever it drops is over the limit in truth; with small pieces, so that many cuts are made."""
    monkeypatch.setattr(fitting, "_PIECE", 64)
    tokenizer = processor_of(model, ready_template(model)).tokenizer
    rng = random.Random(model)
    for text in (*TEXTS, *("".join(rng.choices(TEXTS, k=3)) for _ in range(6))):
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        turns = [Turn("user", (Message("user", (Text(text * 8),)),), 0)]
        within, least = fitting.turns_within(turns, 8 * length, tokenizer)
        assert (within, least) == (1, None)
        assert fitting.turns_within(turns * 40, length // 8, tokenizer)[0] < 40 or length < 40


def test_a_broken_picture_behind_the_cut_is_still_reported(processor_of):
    """Short conversations are rendered whole first, as ever."""
    turns = (
        *chat("Q?", "A " * 40).messages,
        Message("user", (Image(data=b"no"),)),
        *chat("", "B").messages[1:],
    )
    with pytest.raises(DataError, match="not a picture"):
        Renderer(processor_of("shipped"), max_length=60).example(Conversation(turns))
