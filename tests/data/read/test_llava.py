import json
from pathlib import Path

import pytest

from lightning_vlm.data.read.readers import LLaVA
from lightning_vlm.errors import DataError
from tests.support.rows import CAT, DOG, GPT, HUMAN

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("<image>\nWhat?", [CAT, "What?"]),
        ("What?\n<image>", ["What?", CAT]),
        ("What?\r\n<image>\r\n", ["What?", CAT]),
        ("<image>What?", [CAT, "What?"]),
        ("<image>", [CAT]),
        ("<image>\n\nWhat?\n", [CAT, "\nWhat?\n"]),
        ("Is\n<image>\nred?", ["Is\n", CAT, "red?"]),
        ("Is <image> red?", ["Is ", CAT, " red?"]),
        ("<image>\n<image>\nSame?", [CAT, DOG, "Same?"]),
        ("Same?\n<image>\n<image>", ["Same?", CAT, DOG]),
        ("<image> and\n<image>", [CAT, " and", DOG]),
    ],
)
def test_where_llava_puts_pictures(value, parts, write, words):
    pictures = ["cat.png", "pictures/dog.png"][: value.count("<image>")]
    (conversation,) = LLaVA(
        write({"images": pictures, "conversations": [{"from": "user", "value": value}, GPT]})
    )
    assert words(conversation) == [("user", parts), ("assistant", ["A cat."])]


def test_llava(words):
    multi = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "<image>\nWhat?", "markdown": None},
        {"from": "gpt", "value": "A cat."},
        {"from": "user", "value": "And <image>?"},
        {"from": "assistant", "value": "A dog."},
    ]
    records = [
        {
            "id": 1,
            "image": ["cat.png", "pictures/dog.png"],
            "conversations": multi,
            "task": "chat",
            "weight": 3,
        },
        {"image": "cat.png", "conversations": [{"from": "human", "value": "<image>"}, GPT], "width": 4},
        {"image": None, "system": "Be brief.", "conversations": [HUMAN, GPT]},
        {"conversations": [HUMAN]},
    ]
    Path("data.json").write_text(json.dumps(records))
    first, second, third, fourth = LLaVA("data.json")
    assert words(first) == [
        ("system", ["Be kind."]),
        ("user", [CAT, "What?"]),
        ("assistant", ["A cat."]),
        ("user", ["And ", DOG, "?"]),
        ("assistant", ["A dog."]),
    ]
    assert (first.task, first.weight, first.source) == ("chat", 3.0, "data.json:1[0]")
    assert words(second) == [("user", [CAT]), ("assistant", ["A cat."])]
    assert words(third) == [("system", ["Be brief."]), ("user", ["What is this?"]), ("assistant", ["A cat."])]
    assert words(fourth) == [("user", ["What is this?"])]


@pytest.mark.parametrize(
    ("record", "key", "message"),
    [
        ({"image": "cat.png", "conversations": [HUMAN, GPT]}, "image", "1 picture and 0 places"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}, GPT]},
            "image",
            "0 pictures and 1 place",
        ),
        (
            {"images": ["cat.png"], "conversations": [{"from": "human", "value": "<image><image>"}]},
            "images",
            "1 picture and 2",
        ),
        (
            {"image": "cat.png", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]},
            "conversations[1].value",
            "a picture in an assistant turn",
        ),
        ({"image": "cat.png", "images": ["cat.png"], "conversations": [HUMAN]}, "images", "both"),
        ({"image": "dog.png", "conversations": [HUMAN]}, "image", "does not exist"),
        ({"image": ["cat.png", "dog.png"], "conversations": [HUMAN]}, "image[1]", "does not exist"),
        ({"image": {"path": 3}, "conversations": [HUMAN]}, "image", "found 3; expected the path"),
        ({"conversation": [HUMAN]}, "", "the key 'conversations'; did you mean 'conversation'?"),
        ({"conversations": []}, "conversations", "an empty list"),
        ({"conversations": "hi"}, "conversations", "a list of turns"),
        (
            {"conversations": [{"from": "humn", "value": ""}]},
            "conversations[0].from",
            "did you mean 'human'?",
        ),
        ({"conversations": [{"from": "human"}]}, "conversations[0]", "the key 'value' too"),
        ({"conversations": [{"from": "human", "value": 3}]}, "conversations[0].value", "a text"),
        ({"conversations": [{**HUMAN, "weihgt": 0}]}, "conversations[0].weihgt", "unknown key"),
        ({"video": "a.mp4", "conversations": [HUMAN]}, "video", "which does not exist"),
        ({"conversations": [HUMAN], "weight": -1}, "weight", "-1"),
        ("7", "", "an object with the key 'conversations'"),
    ],
)
def test_bad_llava(record, key, message, write):
    with pytest.raises(DataError) as caught:
        LLaVA(write({"conversations": [HUMAN, GPT]}, record))
    assert (caught.value.source, caught.value.key) == ("data.jsonl:2", key)
    assert message in str(caught.value)
