"""Orders and weights of turns: masks proved by decoding what they hold, ids by the model's own template."""

import io
from dataclasses import replace

import PIL.Image
import pytest
import torch
from jinja2 import TemplateError

from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import GREETING, KEPT_APART, MERGED, THINKS_NOTHING, TRAILING, UNLEARNED
from lightning_vlm.errors import DataError
from lightning_vlm.export.probe_samples import probe_samples
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights, token_weights
from tests.support.pictures import NEEDS_PICTURES
from tests.support.rendering import (
    END,
    ENDED_BY_QUESTIONS,
    JOINS_SPACE,
    assert_alike,
    assert_like,
    gap_of,
    processor_inputs,
    ready_template,
    supervised,
)
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
MODELS = (*FAMILIES, "shipped")
FIRST = [(model, ready_template(model)) for model in MODELS]
FILE = io.BytesIO()
PIL.Image.new("RGB", (64, 64), "red").save(FILE, "PNG")
PICTURE = Image(data=FILE.getvalue())
ROLES = {"u": "user", "a": "assistant", "s": "system"}
WORDS = ("What is this?", "It is red.", "And now?", "Still red.", "Why so?", "It is paint.")


def chat(order, weights=None, picture=False, source="chat.jsonl:1"):
    """A conversation whose roles are spelled by letters: `uaa` is a question and two answers."""
    messages = [
        Message(
            ROLES[letter], (Text(f"{letter}{place} {WORDS[place % 6]}"),), (weights or {}).get(place, 1.0)
        )
        for place, letter in enumerate(order)
    ]
    if picture:
        place = order.index("u")
        messages[place] = replace(messages[place], parts=(PICTURE, *messages[place].parts))
    return Conversation(tuple(messages), source=source)


def said(example):
    """What was done to the turns, but for what a template of a thinking model does to earlier answers."""
    return tuple(change for change in example.changes if change not in (UNLEARNED, THINKS_NOTHING))


def takes(renderer, conversation):
    """Whether the model's own template writes a conversation, all of it."""
    turns = [
        {"role": message.role, "content": [{"type": "text", "text": message.parts[-1].text}]}
        for message in conversation.messages
    ]
    try:
        text = renderer.processor.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return False
    return all(message.parts[-1].text in text for message in conversation.messages)


def merged(conversation):
    """Neighbours of one role as one message, a new line between them; an empty question before a greeting."""
    messages = []
    for message in conversation.messages:
        if not any(earlier.role != "system" for earlier in messages) and message.role == "assistant":
            messages.append(Message("user", ()))
        if messages and messages[-1].role == message.role:
            last = messages.pop()
            message = replace(message, parts=(*last.parts, Text("\n"), *message.parts))
        messages.append(message)
    return Conversation(tuple(messages))


ORDERS = ("aua", "uua", "uaa", "uaaua", "auuaa", "saua", "suua")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("model", "template"), FIRST)
def test_other_orders_of_turns_are_written_as_the_template_writes_them(renderer_of, model, template, order):
    renderer = renderer_of(model, template)
    conversation = chat(order, picture=model in NEEDS_PICTURES)
    words_alone = chat(order)
    if order[0] == "s" and not takes(renderer, chat("sua")):
        return  # Pixtral writes no system turn where an answer ends the chat
    example = renderer.example(conversation)
    greets, repeats = order.lstrip("s")[0] == "a", "uu" in order or "aa" in order
    if takes(renderer, words_alone):
        written = conversation
        assert said(example) == ((KEPT_APART,) if repeats else ())
    else:
        written = merged(conversation)
        assert example.changes == ((GREETING,) if greets else ()) + ((MERGED,) if repeats else ())
    assert example.conversation.messages == conversation.messages
    end = renderer.tokenizer.eos_token if template else END[model]
    answers, before = [], ""
    for message in written.messages:
        if message.role == "assistant":
            # LLaVA-NeXT's template asks for an answer by the end of the question.
            gap = gap_of(renderer, model, template)
            gap = "" if model == "llava_next" and before != "user" else gap
            gap = "" if model == "deepseek_vl" and before in ("system", "assistant") else gap
            answer = gap + "".join(part.text for part in message.parts) + end
            if model in ("mistral3", "hunyuan_vl") and before == "assistant":
                answer = answers.pop() + answer  # their templates write nothing between them
            if model in ENDED_BY_QUESTIONS and before == "assistant":
                answers[-1] = answers[-1].removesuffix(end)  # which only a question writes
            answers.append(answer)
        before = message.role
    assert supervised(renderer, example) == answers
    # Some tokenizers would join the space that their template writes with the first word of an answer.
    joins = (model == "llava_next" and (greets or "aa" in order)) or (
        model == "deepseek_vl" and ("aa" in order or "sa" in order)
    )
    if model in JOINS_SPACE and template is None:
        assert_alike(renderer, example, processor_inputs(renderer, written))
    elif model != "paligemma" and not joins:
        assert_like(example, processor_inputs(renderer, written))


@pytest.mark.parametrize(("model", "template"), FIRST)
def test_turns_behind_the_last_answer_are_dropped_in_training_and_asked_in_prompts(
    renderer_of, model, template
):
    renderer, picture = renderer_of(model, template), model in NEEDS_PICTURES
    for order in ("uau", "uauu"):
        example = renderer.example(chat(order, picture=picture))
        whole = renderer.example(chat("ua", picture=picture))
        assert example.changes == (TRAILING,)
        assert (example.truncated, len(example.conversation.messages)) == (0, 2)
        assert torch.equal(example.input_ids, whole.input_ids)
        prompt, reference = renderer.prompt(chat(order, picture=picture))
        assert reference is None
        text = renderer.tokenizer.decode(prompt.input_ids)
        assert all(message.parts[-1].text in text for message in chat(order).messages)


@pytest.mark.parametrize("order", ["aua", "uaa", "uaaua", "a"])
@pytest.mark.parametrize(("model", "template"), FIRST)
def test_a_prompt_is_how_the_full_ids_begin(renderer_of, model, template, order):
    if model in ("llava_onevision", "llava_next", "molmo2") or (model in NEEDS_PICTURES and order == "a"):
        return  # they ask for an answer otherwise than they write a second one, or take no text alone
    renderer = renderer_of(model, template)
    conversation = chat(order, picture=model in NEEDS_PICTURES)
    prompt, reference = renderer.prompt(conversation)
    example = renderer.example(conversation)
    if order != "a" or GREETING in example.changes:
        assert example.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
    last = conversation.messages[-1].parts[-1].text
    both = order == "uaa" and MERGED in example.changes
    assert reference == (f"{conversation.messages[1].parts[-1].text}\n{last}" if both else last)


def test_a_system_turn_in_the_middle_is_written_or_refused_in_one_line(renderer_of):
    example = renderer_of("qwen2_vl").example(chat("uasua"))
    assert len(supervised(renderer_of("qwen2_vl"), example)) == 2
    assert example.changes == ()
    with pytest.raises(DataError, match=r"^chat.jsonl:1: messages: found .*leaves out messages\[2\]"):
        renderer_of("qwen3_vl").example(chat("uasua"))
    with pytest.raises(
        DataError, match=r"^chat.jsonl:1: .*a system turn behind others.*only user and assist"
    ):
        renderer_of("mistral3").example(chat("uasua"))


def weighed(renderer, example):
    """The text of the supervised tokens of each weight, in the order in which weights come."""
    answered = example.kinds >= Kind.RESPONSE
    weights = torch.ones(len(answered)) if example.turn_weights is None else example.turn_weights
    assert (weights[~answered] == 1).all()
    found = {}
    for token, weight in zip(example.input_ids[answered].tolist(), weights[answered].tolist(), strict=True):
        found.setdefault(weight, []).append(token)
    return {
        weight: renderer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        for weight, tokens in found.items()
    }


@pytest.mark.parametrize(("model", "template"), FIRST)
def test_a_turns_weight_is_that_of_its_words_and_its_end(renderer_of, model, template):
    renderer = renderer_of(model, template)
    conversation = chat("uauaua", {1: 0.0, 3: 2.0, 5: 1.0}, picture=model in NEEDS_PICTURES)
    end = renderer.tokenizer.eos_token if template else END[model]
    gap = gap_of(renderer, model, template)
    example = renderer.example(conversation)
    texts = [message.parts[-1].text for message in conversation.messages]
    answers = {place: f"{gap}{texts[place]}{end}" for place in (1, 3, 5)}
    expected = {0.0: answers[1], 2.0: answers[3], 1.0: answers[5]}
    if UNLEARNED in example.changes:  # each answer has a sample of its own
        expected = {0.0: answers[1] + answers[3], 1.0: answers[5]}
    assert weighed(renderer, example) == expected
    plain = renderer.example(chat("uauaua", picture=model in NEEDS_PICTURES))
    assert plain.turn_weights is None or UNLEARNED in plain.changes
    assert torch.equal(plain.input_ids, example.input_ids)
    assert torch.equal(plain.kinds, example.kinds)


@pytest.mark.parametrize(("model", "template"), FIRST)
def test_turns_of_one_role_keep_their_weights(renderer_of, model, template):
    """Also where the template makes one turn of them: the new line and the end belong to the later one."""
    renderer = renderer_of(model, template)
    conversation = chat("uaa", {1: 0.0, 2: 3.0}, picture=model in NEEDS_PICTURES)
    example = renderer.example(conversation)
    end = renderer.tokenizer.eos_token if template else END[model]
    first, second = (message.parts[-1].text for message in conversation.messages[1:])
    gap = gap_of(renderer, model, template)
    if MERGED in example.changes:
        expected = {0.0: gap + first, 3.0: f"\n{second}{end}"}
    else:
        later = "" if model in ("llava_next", "deepseek_vl") else gap
        ends_here = "" if model in ENDED_BY_QUESTIONS else end
        expected = {0.0: gap + first + ends_here, 3.0: later + second + end}
    assert weighed(renderer, example) == expected


def test_an_empty_turn_of_weight_0_does_not_teach_to_stop(renderer_of):
    turns = (Message("user", (Text("Q?"),)), Message("assistant", (), weight=0.0))
    example = renderer_of("shipped").example(Conversation(turns))
    assert weighed(renderer_of("shipped"), example) == {0.0: "<|im_end|>"}


def test_weights_of_kinds_samples_and_turns_multiply(renderer_of):
    """Kind × sample × turn, by hand; a neighbour without weights of turns is as ever."""
    renderer = renderer_of("shipped")
    box = Message("assistant", (Text("at "), Box((0.125, 0.25, 0.5, 1.0))), weight=0.5)
    ask = Message("user", (Text("Where?"),))
    show = Message("user", (PICTURE, Text("Where?")))
    heavy = Conversation((show, box, ask, Message("assistant", (Text("Yes."),), weight=0.0)), weight=3.0)
    light = Conversation((ask, Message("assistant", (Text("No."),))), weight=2.0)
    batch = collate(
        [Item(renderer.example(conversation), None, None) for conversation in (heavy, light)], 0, [], []
    )
    table = KindWeights(instruction=0.25, box=4.0)
    weights = token_weights(batch.kinds, table, batch.factors)
    assert sorted(set(weights[0].tolist())) == [0, 0.25 * 3, 1 * 3 * 0.5, 4 * 3 * 0.5]
    assert sorted(set(weights[1].tolist())) == [0, 0.25 * 2, 1 * 2]
    alone = collate([Item(renderer.example(light), None, None)], 0, [], [])
    assert set(alone.factors.flatten().tolist()) == {2.0}
    length = alone.kinds.shape[1]
    expected = token_weights(alone.kinds, table, alone.factors)
    assert torch.equal(weights[1, :length], expected[0])


def test_the_loss_leaves_out_turns_of_weight_0(model_folder, processor_of):
    """Against transformers' loss with labels of -100 there."""
    from lightning_vlm import VLMModule

    module = VLMModule(str(model_folder("qwen2_5_vl")), token_weights=KindWeights(box=1.0, entity=1.0))
    module.configure_model()
    module.model.eval()
    renderer = Renderer(processor_of("qwen2_5_vl"))
    example = renderer.example(chat("uauaa", {1: 0.0, 4: 0.0}, picture=True))
    batch = collate([Item(example, None, None)], 0, [], [])
    with torch.no_grad():
        sums = module.loss_sums(batch)
        labels = torch.where(
            (example.kinds >= Kind.RESPONSE) & (example.turn_weights > 0), example.input_ids, -100
        )
        own_loss = module.model(
            input_ids=example.input_ids[None], labels=labels[None], use_cache=False, **example.inputs
        ).loss
    torch.testing.assert_close(sums.loss_sum / sums.weight_sum, own_loss, rtol=1e-5, atol=1e-6)
    kept = renderer.tokenizer.decode(labels[labels >= 0])
    assert kept == f"a3 {WORDS[3]}<|im_end|>"


def test_pictures_between_merged_turns_get_no_new_line(renderer_of):
    first = Message("user", (Text("Look:"),))
    second = Message("user", (PICTURE,))
    third = Message("user", (Text("What?"),))
    answer = Message("assistant", (Text("Red."),))
    example = renderer_of("gemma3").example(Conversation((first, second, third, answer)))
    question = Message("user", (Text("Look:"), PICTURE, Text("What?")))
    assert example.changes == (MERGED,)
    assert_like(example, processor_inputs(renderer_of("gemma3"), Conversation((question, answer))))


@pytest.mark.parametrize("model", ["gemma3", "qwen2_5_vl"])
def test_an_export_is_tried_on_the_turns_that_were_trained(processor_of, tmp_path, model):
    """What plain transformers makes of its questions is what training makes of them."""
    processor = processor_of(model)
    asked = probe_samples(processor, [chat("a"), chat("auua", picture=True), chat("uaa")], 5, tmp_path)
    assert len(asked) == 2
    for sample in asked:
        for part in (part for turn in sample.chat for part in turn["content"] if part["type"] == "image"):
            part["image"] = PIL.Image.open(part.pop("path"))
        theirs = processor.apply_chat_template(
            sample.chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert sample.inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
