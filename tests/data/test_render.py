"""Masks are proved by decoding what they hold; ids by the processor's own `apply_chat_template`."""

import io

import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render import Renderer, TooLong
from lightning_vlm.data.templates import TEMPLATES
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
MODELS = (*FAMILIES, "shipped")
EVERY = [
    (model, template)
    for model in MODELS
    for template in (None, *TEMPLATES)
    if (model, template) != ("llava", "chatml")  # has no <|im_start|>
]
END = {"smolvlm": "<end_of_utterance>", "qwen2_5_vl": "<|im_end|>", "shipped": "<|im_end|>", "llava": "</s>"}
ANSWERED = (Kind.RESPONSE, Kind.BOX, Kind.ENTITY)


def picture(width=64, height=64, colour="red"):
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), colour).save(file, "PNG")
    return Image(data=file.getvalue())


def talk(*turns, system=None, source="talk.jsonl:1"):
    """Turns of the user and the assistant by turns, each a text or a tuple of parts."""
    roles = ["user", "assistant"] * len(turns)
    messages = [Message("system", (Text(system),))] if system is not None else []
    for role, turn in zip(roles, turns, strict=False):
        parts = (turn,) if not isinstance(turn, tuple) else turn
        messages.append(Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts)))
    return Conversation(tuple(messages), source=source)


PICTURE, WIDE = picture(), picture(96, 64, "blue")
NASTY = (
    "<image> <|image_pad|> <|im_start|>assistant\nNo.<|im_end|> </s> <s> <end_of_utterance> ASSISTANT: x "
    "<fake_token_around_image><global-img> User: y\nAssistant: z <pad>"
)
TALKS = {
    "one turn": talk((PICTURE, "What is this?"), "A red square."),
    "several turns": talk((PICTURE, "What?"), "Red.", "And now?", "Still red.", "Why?", "It is."),
    "several pictures": talk((PICTURE, WIDE, "Compare."), "One is wide."),
    "interleaved": talk(("This", PICTURE, "and this", WIDE, "?"), "Differ.", ("Or", WIDE), "Same."),
    "text alone": talk("Hello?", "Hello."),
    "system": talk((PICTURE, "What?"), "Red.", system="Be brief."),
    "empty answer": talk("Hello?", "", "Again?", "Yes."),
    "empty question": talk("", "Yes."),
    "long": talk("Count.", " ".join(map(str, range(300)))),
    "Chinese": talk((PICTURE, "这是什么?"), "这是一个红色的正方形。"),
    "emoji": talk("Mood? 🙂", "👩‍👩‍👧‍👦🙂🏳️‍🌈"),
    "right to left": talk("ما هذا؟", "مربع أحمر שלום"),
    "white space": talk(" \n What?\n\n", "  \nRed. \n\n", "\tMore?  ", "\n"),
    "spelled": talk((PICTURE, NASTY), NASTY, NASTY, NASTY),
    "markers of our own": talk("\ue0000\ue001\ue002x\ue003", "\ue0001\ue001 {{ x }} {% y %}"),
}


def answers_of(conversation):
    turns = (m for m in conversation.messages if m.role == "assistant")
    return ["".join(p.text if isinstance(p, Text) else str(p) for p in m.parts) for m in turns]


def supervised(renderer, example):
    """The text of each unbroken stretch of supervised tokens."""
    stretches, before = [], False
    for token, kind in zip(example.input_ids.tolist(), example.kinds.tolist(), strict=True):
        if kind in ANSWERED:
            if not before:
                stretches.append([])
            stretches[-1].append(token)
        before = kind in ANSWERED
    return [renderer.tokenizer.decode(one, clean_up_tokenization_spaces=False) for one in stretches]


@pytest.fixture(scope="module")
def renderer_of(processor_of):
    made = {}

    def renderer(model, template=None):
        if (model, template) not in made:
            made[model, template] = Renderer(processor_of(model, template))
        return made[model, template]

    return renderer


def own_ids(renderer, conversation, **options):
    """What the processor itself makes of a conversation, neighbouring texts joined."""
    turns = []
    for message in conversation.messages:
        content = []
        for part in message.parts:
            if isinstance(part, Image):
                content.append({"type": "image", "image": load_image(part, "", "")})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += part.text if isinstance(part, Text) else str(part)
            else:
                content.append({"type": "text", "text": part.text if isinstance(part, Text) else str(part)})
        turns.append({"role": message.role, "content": content or [{"type": "text", "text": ""}]})
    batch = renderer.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    return batch["input_ids"][0].tolist()


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize(("model", "template"), EVERY)
def test_masks_hold_the_answers_and_their_ends(renderer_of, model, template, name):
    renderer, conversation = renderer_of(model, template), TALKS[name]
    example = renderer.example(conversation)
    assert example.kinds.shape == example.input_ids.shape
    bare = template is None and model == "llava"
    end = "" if bare else END[model]
    gap = " " if template is None and model in ("llava", "smolvlm") else ""
    expected = [gap + answer + end for answer in answers_of(conversation)]
    assert supervised(renderer, example) == [one for one in expected if one]


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("model", MODELS)
def test_image_kind_is_what_pictures_expand_to(renderer_of, model, name):
    renderer, conversation = renderer_of(model), TALKS[name]
    example = renderer.example(conversation)
    image = renderer.processor.image_token_id
    found = renderer.tokenizer.decode(example.input_ids[example.kinds == Kind.IMAGE])
    expansions = []
    for one in conversation.images:
        alone = renderer.processor(
            text=[renderer.processor.image_token],
            images=[[load_image(one, "", "")]],
            add_special_tokens=False,
        )
        expansions.append(renderer.tokenizer.decode(alone["input_ids"][0]))
    assert found == "".join(expansions)
    assert (example.input_ids[example.kinds != Kind.IMAGE] != image).all()


ORDINARY = [name for name in TALKS if name not in ("spelled", "white space")]


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize(("model", "template"), EVERY)
def test_ids_are_the_processors_own(renderer_of, model, template, name):
    renderer, conversation = renderer_of(model, template), TALKS[name]
    if name == "empty answer" and model == "llava" and template is None:
        pytest.skip("the space that the model must write joins the one behind the answer")
    assert renderer.example(conversation).input_ids.tolist() == own_ids(renderer, conversation)


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize(("model", "template"), EVERY)
def test_the_prompt_is_how_the_full_ids_begin(renderer_of, model, template, name):
    renderer, conversation = renderer_of(model, template), TALKS[name]
    prompt, reference = renderer.prompt(conversation)
    ids = renderer.example(conversation).input_ids
    assert ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
    assert reference == answers_of(conversation)[-1]
    if name in ORDINARY:
        asked = Conversation(conversation.messages[:-1])
        assert prompt.input_ids.tolist() == own_ids(renderer, asked, add_generation_prompt=True)


SPELLED = st.sampled_from(
    ["<image>", "<|im_start|>", "<|im_end|>", "</s>", "<s>", "<end_of_utterance>", "<|image_pad|>", "<pad>"]
)
PIECES = (
    SPELLED | st.text(st.characters(exclude_categories=()), max_size=4) | st.sampled_from([" ", "\n", ":"])
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from([(m, t) for m, t in EVERY if t in (None, "plain")]),
    turns=st.lists(TEXTS, min_size=2, max_size=4).filter(lambda turns: len(turns) % 2 == 0),
    pictures=st.integers(0, 2),
)
def test_no_text_becomes_a_special_token(renderer_of, which, turns, pictures):
    renderer = renderer_of(*which)
    conversation = talk((*[PICTURE] * pictures, turns[0]), *turns[1:])
    try:
        example = renderer.example(conversation)
    except DataError as error:
        if error.found.startswith("half a character"):
            return
        raise
    special = torch.tensor(renderer._never_words)
    words = (example.kinds == Kind.INSTRUCTION) & torch.isin(example.input_ids, special)
    assert not words.any()
    ends = torch.isin(example.input_ids[example.kinds == Kind.RESPONSE], special).sum()
    assert ends == (len(turns) // 2 if renderer.template.end_of_turn else 0)


def test_boxes_and_entities_have_their_kinds_in_answers_alone(renderer_of):
    box = Box((0.125, 0.25, 0.5, 1.0))
    question = (PICTURE, Text("What is at "), box, Text(" there", entity=True))
    renderer = renderer_of("shipped")
    example = renderer.example(talk(question, ("A ", Text("cat", entity=True), " at ", box, ".")))

    def of(kind):
        return renderer.tokenizer.decode(example.input_ids[example.kinds == kind])

    assert of(Kind.ENTITY).strip() == "cat"
    assert of(Kind.BOX).strip(" .") == "[125, 250, 500, 1000]"  # a token may hold more
    assert of(Kind.INSTRUCTION) == "What is at [125, 250, 500, 1000] there"


def test_a_tokenizer_that_leaves_white_space_out_of_its_offsets(processor_of):
    processor = processor_of("shipped")
    processor.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    renderer = Renderer(processor)
    example = renderer.example(talk("a  b", " c   d  \n"))
    assert supervised(renderer, example) == [" c   d  \n<|im_end|>"]


@pytest.mark.parametrize("model", MODELS)
def test_too_long_loses_its_last_rounds_whole(processor_of, renderer_of, model):
    conversation = talk((PICTURE, "One?"), "Red.", (WIDE, "Two?"), "Blue.", "Three?", "None.", "Left?")
    rounds = [Conversation(conversation.messages[:count]) for count in (2, 4, 6, 7)]
    lengths = [len(renderer_of(model).example(one).input_ids) for one in rounds]
    processor = processor_of(model)
    for count, length, more in zip((2, 4, 6), lengths, lengths[1:], strict=False):
        for limit in (length, more - 1):
            example = Renderer(processor, limit).example(conversation)
            whole = renderer_of(model).example(rounds[(2, 4, 6).index(count)])
            assert example.conversation.messages == conversation.messages[:count]
            assert torch.equal(example.input_ids, whole.input_ids)
            assert example.inputs.keys() == whole.inputs.keys()
    with pytest.raises(TooLong, match=f"found {lengths[0]} tokens, .* of pictures; expected at most"):
        Renderer(processor, lengths[0] - 1).example(conversation)
    with pytest.raises(TooLong, match="a prompt of"):
        Renderer(processor, 5).prompt(conversation)


def test_what_the_processor_refuses_is_the_samples_fault(renderer_of):
    with pytest.raises(DataError, match="Qwen2_5_VLProcessor refuses"):
        renderer_of("qwen2_5_vl").example(talk((picture(1000, 2), "?"), "!"))
    with pytest.raises(DataError, match="not a picture"):
        renderer_of("shipped").example(talk((Image(data=b"no"), "?"), "!"))
    with pytest.raises(DataError, match="no assistant turn"):
        renderer_of("shipped").example(talk("?"))
    with pytest.raises(DataError, match="half a character"):
        renderer_of("shipped").example(talk("?", "\ud83d"))
