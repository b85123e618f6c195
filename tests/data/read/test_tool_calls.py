"""Calls, results, definitions and reasoning in the formats that people write them in."""

import json

import pytest

from lightning_vlm.data.conversation import Image, Text
from lightning_vlm.data.read.readers import Messages, OpenAIMessages, read
from lightning_vlm.data.tools import ToolCall
from lightning_vlm.errors import DataError
from tests.support.rows import ANSWER, GPT, HUMAN, QUESTION

pytestmark = pytest.mark.usefixtures("folder")

ARGUMENTS = {"box": [0, 0.5, 1, 1], "why": 'it says "cat"', "more": {"deep": None}, "é": True}
SCHEMA = {"name": "zoom", "description": "Look closer.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = {"id": "call_0001", "type": "function", "function": {"name": "zoom", "arguments": ARGUMENTS}}
BARE = {"name": "zoom", "arguments": ARGUMENTS}
RESULT = {"role": "tool", "tool_call_id": "call_0001", "content": "A whisker."}
CALLED = (ToolCall("zoom", ARGUMENTS),)
NAMED = (ToolCall("zoom", ARGUMENTS, "call_0001"),)


def shape(conversation):
    """What each turn is: role, words, calls, reasoning."""
    return [
        (turn.role, "".join(getattr(part, "text", "#") for part in turn.parts), turn.calls, turn.reasoning)
        for turn in conversation.messages
    ]


def openai(call, content=None):
    return {"messages": [QUESTION, {"role": "assistant", "content": content, "tool_calls": [call]}, RESULT]}


WRITTEN = {
    "OpenAI, an object": (openai(CALL) | {"tools": [TOOL]}, NAMED),
    "OpenAI, a text in JSON": (
        openai({**CALL, "function": {"name": "zoom", "arguments": json.dumps(ARGUMENTS)}})
        | {"tools": json.dumps([TOOL])},
        NAMED,
    ),
    "OpenAI, without content": (
        {"messages": [QUESTION, {"role": "assistant", "tool_calls": [CALL]}, RESULT], "tools": [SCHEMA]},
        NAMED,
    ),
    "OpenAI before it had several": (
        {
            "messages": [
                QUESTION,
                {"role": "assistant", "content": None, "function_call": BARE},
                {"role": "function", "name": "zoom", "content": "A whisker."},
            ],
            "functions": [SCHEMA],
        },
        CALLED,
    ),
    "ms-swift": (
        {
            "messages": [
                QUESTION,
                {"role": "tool_call", "content": json.dumps(BARE)},
                {"role": "tool_response", "content": "A whisker."},
            ],
            "tools": json.dumps([TOOL]),
        },
        CALLED,
    ),
    "ShareGPT": (
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": json.dumps(BARE)},
                {"from": "observation", "value": "A whisker."},
            ],
            "tools": json.dumps([SCHEMA]),
        },
        CALLED,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_formats(write, name):
    row, calls = WRITTEN[name]
    conversation = read(write(row))[0]
    assert shape(conversation) == [
        ("user", "What is this?", (), None),
        ("assistant", "", calls, None),
        ("tool", "A whisker.", (), None),
    ]
    assert conversation.tools == (TOOL,)
    assert list(conversation.messages[1].calls[0].arguments) == list(ARGUMENTS)  # in their order


def test_our_own_format(write):
    turns = [
        QUESTION,
        {"role": "assistant", "tool_calls": [{**BARE, "id": "c1"}], "reasoning": "Closer.", "weight": 0.5},
        {
            "role": "tool",
            "content": [{"type": "image", "path": "cat.png"}],
            "tool_call_id": "c1",
            "name": "zoom",
        },
        ANSWER,
    ]
    conversation = Messages(write({"messages": turns, "tools": [TOOL]}))[0]
    _, call, result, _ = conversation.messages
    assert (call.calls, call.reasoning, call.weight, call.parts) == (
        (ToolCall("zoom", ARGUMENTS, "c1"),),
        "Closer.",
        0.5,
        (),
    )
    assert isinstance(result.parts[0], Image)
    assert (result.role, result.call_id, result.name) == ("tool", "c1", "zoom")
    assert conversation.tools == (TOOL,)


def test_calls_that_are_turns_join_the_answer_before_them(write):
    call = {"role": "tool_call", "content": json.dumps(BARE)}
    row = {
        "messages": [QUESTION, {**ANSWER, "content": "Let me see."}, call, call, RESULT | {"role": "tool"}]
    }
    del row["messages"][-1]["tool_call_id"]
    assert shape(read(write(row))[0])[1] == ("assistant", "Let me see.", CALLED * 2, None)
    several = {"role": "tool_call", "content": json.dumps([BARE, BARE])}
    assert shape(read(write({"messages": [QUESTION, several]}))[0])[1][2] == CALLED * 2


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(write, key):
    row = {"messages": [QUESTION, {**ANSWER, key: "It has\nwhiskers."}]}
    assert shape(OpenAIMessages(write(row))[0])[1] == ("assistant", "A cat.", (), "It has\nwhiskers.")


def test_reasoning_in_the_text_stays_there_for_the_template(write):
    row = {"conversations": [HUMAN, {**GPT, "value": "<think>\nHm.\n</think>\n\nA cat."}]}
    assert read(write(row))[0].messages[1].parts == (Text("<think>\nHm.\n</think>\n\nA cat."),)


def test_a_picture_of_a_tool_takes_its_place(write):
    row = {"messages": [QUESTION, *openai(CALL)["messages"][1:]], "images": ["cat.png"]}
    row["messages"][2] = {**RESULT, "content": "<image>Whiskers."}
    _, _, result = read(write(row))[0].messages
    assert [type(part) for part in result.parts] == [Image, Text]


def test_nulls_that_a_table_fills_in_are_no_arguments(tmp_path):
    from datasets import Dataset

    def row(arguments):
        call = {"function": {"name": "zoom", "arguments": arguments}}
        return [QUESTION, {**ANSWER, "content": None, "tool_calls": [call]}]

    rows = [row({"a": 1}), row({"b": [{"c": "x"}]})]
    tools = [[TOOL], [{**TOOL, "function": {"name": "other"}}]]
    Dataset.from_dict({"messages": rows, "tools": tools}).save_to_disk(str(tmp_path / "data"))
    source = read(str(tmp_path / "data"))
    assert [dict(talk.messages[1].calls[0].arguments) for talk in source] == [{"a": 1}, {"b": [{"c": "x"}]}]
    assert source[1].tools == ({"type": "function", "function": {"name": "other"}},)


def assistant(**keys):
    return {"messages": [QUESTION, {"role": "assistant", **keys}]}


@pytest.mark.parametrize(
    ("row", "key", "message"),
    [
        (assistant(tool_calls=3), "messages[1].tool_calls", "a list of calls"),
        (assistant(tool_calls=["zoom"]), "messages[1].tool_calls[0]", "JSON (Expecting value)"),
        (assistant(tool_calls=[{}]), "messages[1].tool_calls[0]", "the keys 'name', 'arguments'"),
        (
            assistant(tool_calls=[{"name": "zoom", "arguments": "[1]"}]),
            "messages[1].tool_calls[0].arguments",
            "a list of 1; expected an object with the arguments",
        ),
        (
            assistant(tool_calls=[{"name": "zoom", "arguments": '{"a": NaN}'}]),
            "messages[1].tool_calls[0].arguments",
            "NaN is no JSON",
        ),
        (
            assistant(tool_calls=[{"name": "zoom", "arguments": {"a": "\ud800"}}]),
            "messages[1].tool_calls",
            "half a surrogate pair",
        ),
        (assistant(tool_call=[BARE]), "messages[1].tool_call", "write 'tool_calls'"),
        (assistant(content="a", tol_calls=[BARE]), "messages[1].tol_calls", "did you mean 'tool_calls'?"),
        (assistant(content="a", reasoning="b", thinking="c"), "messages[1]", "with different texts"),
        (assistant(content="a", reasoning=["b"]), "messages[1].reasoning", "expected a text"),
        (assistant(), "messages[1]", "the key 'content' too"),
        (
            {"messages": [{**QUESTION, "tool_calls": [BARE]}, ANSWER]},
            "messages[0].tool_calls",
            "the assistant",
        ),
        ({"messages": [QUESTION, ANSWER, RESULT]}, "messages[2].tool_call_id", "a call before it"),
        (openai({**CALL, "id": "other"}), "messages[2].tool_call_id", "one of 'other'"),
        ({"messages": [QUESTION, ANSWER], "tools": "a hammer"}, "tools", "expected JSON"),
        ({"messages": [QUESTION, ANSWER], "tools": [{"function": {}}]}, "tools[0]", "the keys 'name'"),
        ({"messages": [QUESTION, ANSWER], "tools": [TOOL], "functions": [TOOL]}, "functions", "one of them"),
        (
            {
                "messages": [
                    QUESTION,
                    {**ANSWER, "loss": False},
                    {"role": "tool_call", "content": json.dumps(BARE)},
                ]
            },
            "messages[2].content",
            "one weight for an answer and its calls",
        ),
    ],
)
def test_bad_calls(write, row, key, message):
    with pytest.raises(DataError) as caught:
        read(write(row))
    assert (caught.value.source, caught.value.key) == ("data.jsonl:1", key)
    assert message in str(caught.value)


def test_bare_definitions_get_a_line(write):
    source = read(write({"messages": [QUESTION, ANSWER], "tools": [SCHEMA]}))
    assert source.notes == [
        "tools without 'type' and 'function' are put into OpenAI's shape, as templates expect them (1 row)"
    ]
