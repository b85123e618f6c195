"""Orders of turns that templates refuse, and the texts in a turn."""

import itertools

import pytest

from lightning_vlm.data.boxes.codec import Coordinate
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.render.text_span import TextSpan, WrittenRun
from lightning_vlm.data.render.turns import (
    GREETING,
    KEPT_APART,
    MERGED,
    Turn,
    arrange,
    first_learned,
    plain_text,
    reasoning_span,
    text_spans,
    until_last_answer,
)
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def messages(order, **more):
    return [
        Message(ROLES[letter], (Text(f"{letter}{place}"),), **more if letter == "a" else {})
        for place, letter in enumerate(order)
    ]


def strict(roles):
    """What a template takes in which user and assistant alternate, behind one system turn at most."""
    talk = roles[1:] if roles[0] == "system" else roles
    return all(role == ("user", "assistant")[place % 2] for place, role in enumerate(talk))


def anything(roles):
    return True


def greets_not(roles):
    """What a template takes that refuses an answer at the beginning only."""
    return roles[0] == "user"


@pytest.mark.parametrize(
    ("order", "accepts", "expected", "changes"),
    [
        ("uaua", strict, [[0], [1], [2], [3]], ()),
        ("suua", strict, [[0], [1, 2], [3]], (MERGED,)),
        ("uuuaa", strict, [[0, 1, 2], [3, 4]], (MERGED,)),
        ("uuuaa", anything, [[0], [1], [2], [3], [4]], (KEPT_APART,)),
        ("saua", strict, [[0], [], [1], [2], [3]], (GREETING,)),
        ("aua", anything, [[0], [1], [2]], ()),
        ("aaua", strict, [[], [0, 1], [2], [3]], (GREETING, MERGED)),
        ("aaua", greets_not, [[], [0], [1], [2], [3]], (GREETING, KEPT_APART)),
        ("aaua", anything, [[0], [1], [2], [3]], (KEPT_APART,)),
        ("ausa", strict, [[0], [1], [2], [3]], ()),
        ("uatat", strict, [[0], [1], [2], [3], [4]], ()),
        ("uattaa", strict, [[0], [1], [2], [3], [4], [5]], (KEPT_APART,)),
        ("uatta", strict, [[0], [1], [2], [3], [4]], ()),
    ],
)
def test_as_little_is_changed_as_the_template_needs(order, accepts, expected, changes):
    given = messages(order)
    turns, made = arrange(given, accepts)
    assert [[given.index(message) for message in turn.messages] for turn in turns] == expected
    assert made == changes
    for turn, before in itertools.zip_longest(turns, expected):
        assert not before or turn.first == before[0]
        assert all(message.role == turn.role for message in turn.messages)


@pytest.mark.parametrize(("order", "kept"), [("uaua", 4), ("uauu", 2), ("auu", 1), ("ua", 2), ("uatu", 2)])
def test_what_comes_after_the_last_answer_is_left_out(order, kept):
    chat = Conversation(tuple(messages(order)))
    assert until_last_answer(chat) == chat.messages[:kept]


def test_a_conversation_without_an_answer_is_refused():
    with pytest.raises(DataError, match=r"chat.jsonl:1: messages: found no assistant turn") as caught:
        until_last_answer(Conversation(tuple(messages("su")), source="chat.jsonl:1"))
    assert caught.value.kind == "no_answer"


def test_an_empty_turn_before_a_greeting_is_the_users_and_stands_where_it_does():
    turns, _ = arrange(messages("saua"), strict)
    assert turns[1] == Turn("user", (), 1)
    (span,) = text_spans(turns[1])
    assert (span.text, span.kinds, len(span.weights), span.answer) == ("", b"", 0, False)


def test_answers_with_reasoning_are_never_merged():
    given = messages("uaa", reasoning="I think.")
    turns, made = arrange(given, strict)
    assert [turn.messages for turn in turns] == [(message,) for message in given]
    assert made == (KEPT_APART,)


@pytest.mark.parametrize(
    ("weights", "expected"), [((1, 0, 1), -1), ((0, 0, 1), 5), ((0, 0.5, 1), 3), ((0, 0, 0), -1)]
)
def test_a_conversation_is_not_cut_before_the_first_answer_that_counts(weights, expected):
    turns = []
    for place, weight in enumerate(weights):
        turns.append(Turn("user", (Message("user", (Text("?"),)),), 2 * place))
        turns.append(Turn("assistant", (Message("assistant", (Text("!"),), float(weight)),), 2 * place + 1))
    assert first_learned(turns) == expected


def test_a_merged_turn_keeps_what_each_character_is():
    run = WrittenRun("[1,22]", (Coordinate(1, 2, 0, 0, 1000), Coordinate(3, 5, 0, 1, 1000)))
    first = Message("assistant", (Text("At "), run, Text(" dog", entity=True)), 0.5)
    turn = Turn("assistant", (first, Message("assistant", (run, Text(".")), 0.25)), 3)
    (span,) = text_spans(turn)
    assert span.text == plain_text(turn) == "At [1,22] dog\n[1,22]."
    boxes = [span.text[start:stop] for start, stop in span.boxes]
    assert boxes == ["[1,22]", "[1,22]"]
    assert [span.text[one.start : one.stop] for one in span.coordinates] == ["1", "22", "1", "22"]
    kinds = [Kind.RESPONSE] * 3 + [Kind.BOX] * 6 + [Kind.ENTITY] * 4
    assert list(span.kinds) == [*kinds, Kind.RESPONSE, *[Kind.BOX] * 6, Kind.RESPONSE]
    assert span.weights.tolist() == [0.5] * 13 + [0.25] * 8
    assert (span.answer, span.end_weight, span.key) == (True, 0.25, "messages[3].content")


def test_questions_weigh_one_whatever_they_are_given():
    turn = Turn("user", (Message("user", (Text("Where? "), Box((0, 0, 1, 1))), 0.0),), 0)
    (span,) = text_spans(turn)
    assert set(span.weights.tolist()) == {1.0}
    assert set(span.kinds) == {Kind.INSTRUCTION}
    assert (span.answer, span.end_weight) == (False, 1.0)


def test_a_picture_parts_the_texts_of_a_turn(tmp_path):
    picture = Image(tmp_path / "a.png")
    turn = Turn("user", (Message("user", (picture, Text("a"), Text("b"), picture, Text("c"))),), 0)
    found = [one.text if isinstance(one, TextSpan) else one for one in text_spans(turn)]
    assert found == [picture, "ab", picture, "c"]
    alone = Turn("user", (Message("user", (picture,)),), 0)
    assert list(text_spans(alone)) == [picture]


def test_reasoning_is_all_response_and_weighs_what_its_turn_does():
    assert reasoning_span(Turn("assistant", (Message("assistant", (Text("a"),)),), 1)) is None
    thought = Message("assistant", (Text("a"),), 0.5, reasoning="Hm.")
    span = reasoning_span(Turn("assistant", (thought,), 1))
    assert (span.text, list(span.kinds), span.weights.tolist()) == ("Hm.", [Kind.RESPONSE] * 3, [0.5] * 3)
    assert (span.answer, span.end_weight, span.key, span.reasoning) == (
        True, 0.5, "messages[1].reasoning", True,
    )  # fmt: skip
