import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_vlm.data.conversation import Box, Chain, Conversation, Image, Message, Slice, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.tools import ToolCall
from lightning_vlm.errors import DataError, UserError

ASK = Message("user", (Image(Path("a.png")), Text("What?")))
ANSWER = Message("assistant", (Text("A "), Text("cat", entity=True), Box((0, 0.25, 0.5, 1))))
SYSTEM = Message("system", (Text("Be kind."),))


@pytest.mark.parametrize(
    "messages",
    [(ASK,), (ASK, ANSWER), (SYSTEM, ASK, ANSWER), (ASK, ANSWER, ASK), (SYSTEM, ASK, ANSWER, ASK, ANSWER)],
)
def test_what_is_accepted(messages):
    conversation = Conversation(messages, "vqa", 0.5, "a.jsonl:1")
    assert pickle.loads(pickle.dumps(conversation)) == conversation
    assert len(conversation.images) == sum(message.role == "user" for message in messages)


@pytest.mark.parametrize(
    ("messages", "key", "found"),
    [
        ((), "messages", "an empty list"),
        ((SYSTEM,), "messages", "only a system turn"),
        ((SYSTEM, SYSTEM), "messages", "only a system turn"),
        ((ASK, Message("narrator", (Text("42"),))), "messages[1].role", "'narrator'"),
        ((ASK, Message("assistant", ASK.parts)), "messages[1].content[0]", "a picture in an assistant turn"),
        ((Message("user", (Image(),)),), "messages[0].content[0]", "neither"),
        ((Message("user", (Image(Path("a"), b"b"),)),), "messages[0].content[0]", "both"),
        ((Message("user", (Box((0.5, 0, 0.4, 1)),)),), "messages[0].content[0]", "[0.5, 0, 0.4, 1]"),
        ((Message("user", (Box((0, 0, 1, 1.01)),)),), "messages[0].content[0]", "1.01"),
        ((Message("user", (Box((-0.1, 0, 1, 1)),)),), "messages[0].content[0]", "-0.1"),
        ((Message("user", (Box((0, 0, 1, math.nan)),)),), "messages[0].content[0]", "nan"),
    ],
)
def test_what_is_refused(messages, key, found):
    with pytest.raises(DataError) as caught:
        Conversation(messages, source="a.jsonl:1")
    error = caught.value
    assert (error.source, error.key) == ("a.jsonl:1", key)
    assert found in error.found
    assert error.expected


CALL = Message("assistant", (), calls=(ToolCall("look", {"at": [1, None]}, "c1"),), reasoning="Hm.")


def test_calls_results_and_reasoning():
    result = Message("tool", (Text("A cat."), *ASK.parts[:1]), call_id="c1", name="look")
    talk = Conversation((ASK, CALL, result, ANSWER), tools=({"name": "look"},))
    assert pickle.loads(pickle.dumps(talk)) == talk
    assert len(talk.images) == 2  # a tool may show a picture


@pytest.mark.parametrize(
    ("messages", "key", "expected"),
    [
        ((replace(ASK, reasoning="Hm."), ANSWER), "messages[0].reasoning", "turns of the assistant alone"),
        ((replace(ASK, calls=CALL.calls), ANSWER), "messages[0].tool_calls", "turns of the assistant alone"),
        ((ASK, replace(ANSWER, call_id="c1")), "messages[1].tool_call_id", "turns of the tool alone"),
        ((ASK, replace(ANSWER, name="look")), "messages[1].name", "turns of the tool alone"),
        ((ASK, CALL, Message("tool", (), call_id="c2")), "messages[2].tool_call_id", "one of 'c1'"),
        ((ASK, Message("tool", (), call_id="c1"), CALL), "messages[1].tool_call_id", "a call before it"),
    ],
)
def test_what_is_refused_of_tools(messages, key, expected):
    with pytest.raises(DataError) as caught:
        Conversation(messages, source="a.jsonl:1")
    assert (caught.value.source, caught.value.key) == ("a.jsonl:1", key)
    assert expected in caught.value.expected


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_refused_weights(weight):
    with pytest.raises(DataError, match=r"a.jsonl:1: weight: found .*; expected a finite number >= 0"):
        Conversation((ASK,), weight=weight, source="a.jsonl:1")


def test_a_weight_that_float32_cannot_sum_is_refused():
    assert Conversation((ASK,), weight=1e6).weight == 1e6
    with pytest.raises(DataError, match=r"a.jsonl:1: weight: found 1e\+38; expected at most 1,000,000"):
        Conversation((ASK,), weight=1e38, source="a.jsonl:1")
    with pytest.raises(DataError, match=r"messages\[1\].weight: found 1e\+38"):
        Conversation((ASK, Message("assistant", (Text("A cat."),), weight=1e38)))


def test_errors_travel_from_worker_to_main():
    error = DataError("a.jsonl:1", "weight", "-1", "a finite number >= 0")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_chain_and_a_slice_are_views():
    first, second = Drawn(size=4, seed=1), Drawn(size=3, seed=2, split="val")
    chain = Chain([first, second])
    assert [sample.source for sample in chain] == [sample.source for sample in (*first, *second)]
    assert chain[-1] == second[2]
    for index in (7, -8):
        with pytest.raises(IndexError):
            chain[index]
    cut = Slice(chain, 3, 5)
    assert [sample.source for sample in cut] == [first[3].source, second[0].source]
    with pytest.raises(IndexError):
        cut[2]
    assert len(Slice(chain, -2)) == 2
    for make in (lambda: Chain([]), lambda: Slice(chain, 7)):
        with pytest.raises(UserError):
            make()
