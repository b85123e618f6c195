import base64
import math
from pathlib import Path

import pytest

from lightning_vlm.data.read.readers import Messages, OpenAIMessages
from lightning_vlm.errors import DataError
from tests.support.rows import ANSWER, QUESTION, change, image_url

pytestmark = pytest.mark.usefixtures("folder")


BASE64 = base64.b64encode(b"picture").decode()


PARTS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER],
    "task": "a",
    "weight": 1,
}
CONTENT = ("messages", 0, "content")


@pytest.mark.parametrize(
    ("path", "value", "key", "message"),
    [
        (
            ("mesages",),
            [],
            "mesages",
            "an unknown key; expected only 'messages', 'task', 'weight', 'tools', 'references', 'level', "
            "'id'; did you mean 'messages'?",
        ),
        (("messages", 0, "rol"), "user", "messages[0].rol", "did you mean 'role'?"),
        ((*CONTENT, 0, "txt"), "", "messages[0].content[0].txt", "did you mean 'text'?"),
        (("messages",), ..., "", "the key 'messages' too"),
        (("messages", 0, "role"), ..., "messages[0]", "the key 'role' too"),
        (CONTENT, ..., "messages[0]", "the key 'content' too"),
        ((*CONTENT, 0, "type"), ..., "messages[0].content[0]", "the key 'type'"),
        ((*CONTENT, 0, "text"), ..., "messages[0].content[0]", "the key 'text' too"),
        (("messages",), {}, "messages", "found an object without keys; expected a list of turns"),
        (("messages",), [], "messages", "an empty list"),
        (("messages", 0), "hello", "messages[0]", "an object with the keys 'role', 'content'"),
        (("messages", 0, "role"), "usr", "messages[0].role", "did you mean 'user'?"),
        (("messages", 0, "role"), "bot", "messages[0].role", "one of 'system', 'user', 'assistant', 'tool'"),
        (("messages", 0, "role"), ["user"], "messages[0].role", "a list of 1"),
        (CONTENT, 7, "messages[0].content", "found 7; expected a text or a list of parts"),
        (CONTENT, None, "messages[0].content", "found null"),
        (
            CONTENT,
            ["hello"],
            "messages[0].content[0]",
            "found 'hello'; expected an object with the key 'type'",
        ),
        ((*CONTENT, 0, "text"), 7, "messages[0].content[0].text", "found 7; expected a text"),
        ((*CONTENT, 0, "text"), "\ud800", "messages[0].content[0].text", "half a surrogate pair"),
        ((*CONTENT, 0, "type"), "txt", "messages[0].content[0].type", "did you mean 'text'?"),
        ((*CONTENT, 0), {"type": "image_url"}, "messages[0].content[0].type", "read by OpenAIMessages"),
        ((*CONTENT, 0), {"type": "image"}, "messages[0].content[0]", "the key 'path' too"),
        (
            (*CONTENT, 0),
            {"type": "image", "path": "a", "base64": "b"},
            "messages[0].content[0].path",
            "unknown key",
        ),
        ((*CONTENT, 0), {"type": "image", "path": 1}, "messages[0].content[0].path", "the path of a picture"),
        (
            (*CONTENT, 0),
            {"type": "image", "path": "dog.png"},
            "messages[0].content[0].path",
            "does not exist",
        ),
        ((*CONTENT, 0), {"type": "image", "path": "../a.png"}, "messages[0].content[0].path", "outside"),
        (
            (*CONTENT, 0),
            {"type": "image", "path": "http://a.b/c"},
            "messages[0].content[0].path",
            "the URL 'http://a.b/c'",
        ),
        ((*CONTENT, 0), {"type": "image", "base64": "a?b="}, "messages[0].content[0].base64", "base64"),
        ((*CONTENT, 0), {"type": "image", "base64": "ä"}, "messages[0].content[0].base64", "base64"),
        ((*CONTENT, 0), {"type": "box", "box": [0, 0, 1]}, "messages[0].content[0].box", "four numbers"),
        ((*CONTENT, 0), {"type": "box", "box": "0011"}, "messages[0].content[0].box", "four numbers"),
        ((*CONTENT, 0), {"type": "box", "box": [0, 0, 1, "1"]}, "messages[0].content[0].box[3]", "a number"),
        ((*CONTENT, 0), {"type": "box", "box": [0, 0, 1, True]}, "messages[0].content[0].box[3]", "a number"),
        (
            (*CONTENT, 0),
            {"type": "box", "box": [0, 0, 1, math.nan]},
            "messages[0].content[0]",
            "between 0 and 1",
        ),
        ((*CONTENT, 0), {"type": "box", "box": [5, 5, 40, 80]}, "messages[0].content[0]", "divide pixels"),
        (("weight",), -1, "weight", "found -1.0; expected a finite number >= 0"),
        (("weight",), math.nan, "weight", "found nan"),
        (("weight",), math.inf, "weight", "found inf"),
        (("weight",), 10**400, "weight", "found inf"),
        (("weight",), "1", "weight", "found '1'; expected a number"),
        (("weight",), True, "weight", "found true; expected a number"),
        (("weight",), None, "weight", "found null"),
        (("task",), "", "task", "an empty text"),
        (("task",), 3, "task", "found 3; expected a text"),
    ],
)
def test_bad_messages(path, value, key, message, write):
    file = write(PARTS, change(PARTS, path, value))
    with pytest.raises(DataError) as caught:
        Messages(file)
    assert (caught.value.source, caught.value.key) == ("data.jsonl:2", key)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_openai(write, words):
    content = [
        {"type": "text", "text": "<image> or "},
        image_url("pictures/dog.png", detail="low"),
        image_url(f"data:image/jpeg;base64,{BASE64}"),
    ]
    turns = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": content}]
    answer = {"role": "assistant", "content": "A cat.", "refusal": None, "tool_calls": None}
    record = {"messages": [*turns, answer], "id": 7, "tools": [], "task": "vqa", "weight": 0.5}
    (conversation,) = OpenAIMessages(write(record))
    assert words(conversation) == [
        ("system", ["Be kind."]),
        ("user", ["<image> or ", Path("pictures/dog.png"), b"picture"]),
        ("assistant", ["A cat."]),
    ]
    assert (conversation.task, conversation.weight) == ("vqa", 0.5)


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        (
            image_url("https://a.b/c.png"),
            ".image_url.url",
            "the URL 'https://a.b/c.png'; expected the path of a file: ",
        ),
        (image_url("file:///etc/passwd"), ".image_url.url", "found '/etc/passwd', which is outside"),
        (image_url("data:image/png;base64,&"), ".image_url.url", "base64"),
        (image_url("data:text/plain;base64,AAAA"), ".image_url.url", "does not exist"),
        (image_url("dog.png"), ".image_url.url", "does not exist"),
        (image_url(3), ".image_url.url", "the path of a picture"),
        ({"type": "image_url", "image_url": "dog.png"}, ".image_url", "does not exist"),
        ({"type": "image_url", "image_url": {"uri": "cat.png"}}, ".image_url.uri", "did you mean 'url'?"),
        ({"type": "imge", "path": "cat.png"}, ".type", "did you mean 'image'?"),
        ({"type": "input_audio", "data": "x"}, ".type", "other parts can't be read yet"),
        ({"type": "text", "text": 3}, ".text", "a text"),
    ],
)
def test_bad_openai_parts(part, key, message, write):
    with pytest.raises(DataError) as caught:
        OpenAIMessages(write({"messages": [{"role": "user", "content": [part]}, ANSWER]}))
    assert caught.value.key == f"messages[0].content[0]{key}"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "key", "message"),
    [
        (
            {"messages": [QUESTION, {**ANSWER, "weight": "a"}]},
            "messages[1].weight",
            "true, false or a number",
        ),
        ({"messages": [QUESTION, {**ANSWER, "wieght": 0}]}, "messages[1].wieght", "did you mean 'weight'?"),
        (
            {"messages": [QUESTION, {**ANSWER, "tool_calls": [1]}]},
            "messages[1].tool_calls[0]",
            "an object with the keys 'name', 'arguments'",
        ),
        (
            {"messages": [QUESTION, {"role": "assistant", "content": None}]},
            "messages[1]",
            "the key 'content' too",
        ),
        ({"messages": [QUESTION, {"role": "narrator", "content": "1"}]}, "messages[1].role", "'narrator'"),
        ({"messages": [QUESTION, ANSWER], "tools": [1]}, "tools[0]", "an object with the keys 'name'"),
        ({"message": [QUESTION, ANSWER]}, "", "the key 'messages'; did you mean 'message'?"),
        ([], "", "an object"),
    ],
)
def test_bad_openai(record, key, message, write):
    with pytest.raises(DataError) as caught:
        OpenAIMessages(write({"messages": [QUESTION, ANSWER]}, record))
    assert (caught.value.source, caught.value.key) == ("data.jsonl:2", key)
    assert message in str(caught.value)
