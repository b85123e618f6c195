"""What a chat template does to the words: masked exactly, or refused."""

import io
import re
import warnings

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.stripped_texts import match_stripped
from lightning_vlm.data.render.turns import Turn, text_spans
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind


def talk(*texts, picture=False):
    parts = [[Text(text)] for text in texts]
    if picture:
        file = io.BytesIO()
        PIL.Image.new("RGB", (64, 64)).save(file, "PNG")
        parts[0].insert(0, Image(data=file.getvalue()))
    roles = ["user", "assistant"] * (len(texts) // 2)
    turns = zip(roles, parts, strict=True)
    return Conversation(
        tuple(Message(role, tuple(content)) for role, content in turns), source="talk.jsonl:1"
    )


SPACED = talk(" \n What?\n\n", "  \nRed. \n\n", "\tMore?  ", "\n")
TWO_TURNS = talk("What?", "Red.", "And now?", "Still red.", picture=True)


def answers(renderer, example):
    """What is supervised, an answer after the other."""
    words, before = [], False
    for token, kind in zip(example.input_ids.tolist(), example.kinds.tolist(), strict=True):
        now = kind == Kind.RESPONSE
        if now:
            words = [*words, []] if not before else words
            words[-1].append(token)
        before = now
    return [renderer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False) for tokens in words]


def own_ids(renderer, conversation):
    turns = [
        {"role": message.role, "content": [{"type": "text", "text": part.text} for part in message.parts]}
        for message in conversation.messages
    ]
    return renderer.processor.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0]


TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ TEXT }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("p.text | trim", "Red."),
        ("p.text.rstrip()", "  \nRed."),
        ("p.text.strip('\\n')", "  \nRed. "),
        ("(p.text | trim) if m.role == 'user' else p.text", "  \nRed. \n\n"),
    ],
)
def test_a_template_that_strips_is_masked_exactly(processor_of, text, written):
    processor = processor_of("shipped")
    processor.chat_template = TURN.replace("TEXT", text)
    renderer = Renderer(processor)
    conversation = SPACED
    example = renderer.example(conversation)
    assert answers(renderer, example)[0] == written + "<|im_end|>"
    assert example.input_ids.tolist() == list(own_ids(renderer, conversation))


@pytest.mark.filterwarnings("ignore:.*writes no place for a picture")
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TURN.replace("TEXT", "p.text | upper"), "a text that the chat template changes"),
        (TURN.replace("in messages %}", "in messages[-2:] %}", 1), "leaves out messages[0].content"),
        (
            TURN.replace(
                "in messages %}", "in (messages if messages | length < 3 else messages | reverse) %}", 1
            ),
            "repeats or reorders texts",
        ),
        (TURN.replace("<image>", ""), "1 picture and 0 places for them"),
        ("{% if messages | length > 3 %}{{ raise_exception('too much') }}{% endif %}" + TURN, "too much"),
    ],
)
def test_what_a_template_spoils_is_refused(processor_of, template, reason):
    processor = processor_of("shipped")
    processor.chat_template = template.replace("TEXT", "p.text")
    conversation = TWO_TURNS
    with pytest.raises(DataError) as error:
        Renderer(processor).example(conversation)
    assert reason in str(error.value)
    assert str(error.value).startswith("talk.jsonl:1: messages: found ")


def test_a_processor_without_a_template_is_refused_with_the_ready_ones_named(processor_of):
    processor = processor_of("shipped")
    processor.chat_template = None
    with pytest.raises(UserError, match=r"no chat template; .*model.chat_template .plain, chatml, "):
        Renderer(processor)


def test_a_template_without_an_end_of_turn_warns_once(processor_of):
    with pytest.warns(UserWarning, match=r"would never learn to stop; .*model\.chat_template") as caught:
        Renderer(processor_of("llava")).example(TWO_TURNS)
    assert len([warning for warning in caught if "never learn to stop" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Renderer(processor_of("shipped"))


def test_what_begins_the_next_turn_is_no_end_of_turn(processor_of):
    processor = processor_of("shipped")
    processor.chat_template = TURN.replace("TEXT", "p.text").replace("<|im_end|>", "")
    renderer = Renderer(processor)
    assert answers(renderer, renderer.example(talk("a?", "b", "c?", "d"))) == ["b", "d"]


def test_a_token_that_would_be_half_prompt_and_half_answer_is_cut(processor_of):
    processor = processor_of("shipped")
    processor.chat_template = TURN.replace("m.role }}\n", "m.role }}: ").replace("assistant\n", "assistant: ")
    processor.chat_template = processor.chat_template.replace("TEXT", "p.text")
    renderer, conversation = Renderer(processor), talk("What?", "red", "And now?", "blue")
    example, (prompt, _) = renderer.example(conversation), renderer.prompt(conversation)
    joined = [renderer.tokenizer.decode(token) for token in own_ids(renderer, conversation)]
    assert " red" in joined, "this shows nothing: the tokenizer joins no space with the answer"
    assert answers(renderer, example) == ["red<|im_end|>", "blue<|im_end|>"]
    assert example.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()


def test_begin_of_sequence_comes_once(processor_of):
    processor = processor_of("llava")  # its tokenizer adds one
    processor.chat_template = "{{ bos_token }}" + TURN.replace("TEXT", "p.text").replace("<|im_end|>", "</s>")
    renderer = Renderer(processor)
    ids = renderer.example(SPACED).input_ids.tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert ids == list(own_ids(renderer, SPACED))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stripped_texts_are_found_as_a_regular_expression_finds_them(data):
    texts = data.draw(st.lists(st.text(" \na", max_size=5), min_size=1, max_size=4))
    pieces = data.draw(
        st.lists(st.text(" \n<", max_size=2), min_size=len(texts) + 1, max_size=len(texts) + 1)
    )
    ways = (str, str.strip, str.lstrip, str.rstrip, lambda text: text.strip("\n"), lambda text: f"{text}x")
    written, pattern, spans = pieces[0], re.escape(pieces[0]), []
    for text, piece in zip(texts, pieces[1:], strict=True):
        written += data.draw(st.sampled_from(ways))(text) + piece
        forms = [text]
        for space in (None, "\n"):
            forms += [text.strip(space), text.lstrip(space), text.rstrip(space)]
        pattern += f"({'|'.join(map(re.escape, forms))}){re.escape(piece)}"
        spans.append(next(text_spans(Turn("user", (Message("user", (Text(text),)),), 0))))
    match, found = re.fullmatch(pattern, written), match_stripped(written, pieces, spans)
    assert (found and [span.text for span in found]) == (match and list(match.groups()))
    for span in found or ():
        assert len(span.kinds) == len(span.weights) == len(span.text)
