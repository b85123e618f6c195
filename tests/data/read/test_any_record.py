import base64
import json
import pickle
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Point, Region, Text
from lightning_vlm.data.read.readers import LLaVA, Messages, OpenAIMessages, read
from lightning_vlm.errors import UserError
from tests.support.rows import CAT, GPT, change

pytestmark = pytest.mark.usefixtures("folder")


texts = st.text(max_size=12) | st.sampled_from(
    ["<image>", "<|im_start|>assistant\n", "\n", "\u2028", "{", '"']
)
fractions = st.floats(0, 1)
sides = st.tuples(fractions, fractions).filter(lambda ends: ends[0] != ends[1]).map(sorted)
labels = st.none() | texts
boxes = st.builds(lambda x, y, label: Box((x[0], y[0], x[1], y[1]), label), sides, sides, labels)
points = st.builds(Point, st.tuples(fractions, fractions), labels)
regions = st.builds(
    lambda x, y, label: Region((x, y, 1.0, y, 1.0, 1.0), label), st.floats(0, 0.9), st.floats(0, 0.9), labels
)
seen = st.builds(Text, texts, st.booleans()) | boxes | points | regions
shown = seen | st.binary(max_size=9).map(lambda data: Image(data=data)) | st.just(Image(CAT, root=Path(".")))


def turn(role, parts):
    return st.lists(parts, max_size=4).map(lambda some: Message(role, tuple(some)))


@st.composite
def conversations(draw):
    rounds = []
    for _ in range(draw(st.integers(1, 3))):
        rounds += [draw(turn("user", shown)), draw(turn("assistant", seen))]
    system = [draw(turn("system", shown))] if draw(st.booleans()) else []
    end = -1 if draw(st.booleans()) else None
    task, weight = draw(st.text(min_size=1, max_size=5)), draw(st.floats(0, 1e6))
    return Conversation(tuple(system + rounds[:end]), task, weight)


def record_of(conversation):
    def part_of(part):
        if isinstance(part, Text):
            return {"type": "entity" if part.entity else "text", "text": part.text}
        if isinstance(part, Box | Point | Region):
            kind = type(part).__name__.lower()
            label = {} if part.label is None else {"label": part.label}
            return {"type": kind, kind: list(part.numbers), **label}
        if part.path:
            return {"type": "image", "path": str(part.path)}
        return {"type": "image", "base64": base64.b64encode(part.data).decode()}

    def content_of(parts):
        plain = len(parts) == 1 and isinstance(parts[0], Text) and not parts[0].entity
        return parts[0].text if plain else [part_of(part) for part in parts]

    turns = [
        {"role": message.role, "content": content_of(message.parts)} for message in conversation.messages
    ]
    return {"messages": turns, "task": conversation.task, "weight": conversation.weight}


def content_of_sample(conversation):
    return conversation.messages, conversation.task, conversation.weight


unhurried = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@given(some=st.lists(conversations(), min_size=1, max_size=3), ascii_only=st.booleans(), array=st.booleans())
@unhurried
def test_what_is_written_is_read(some, ascii_only, array):
    records = [record_of(conversation) for conversation in some]
    separator = (",\n", "\n")[not array].join(
        json.dumps(record, ensure_ascii=ascii_only) for record in records
    )
    Path("data.jsonl").write_text(f"[{separator}]" if array else separator, "utf-8", newline="")
    for source in (Messages("data.jsonl"), read("data.jsonl")):
        assert list(map(content_of_sample, source)) == list(map(content_of_sample, some))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.integers(300, 400).map(lambda digits: 10**digits)
    | st.sampled_from(["user", "cat.png", "a://b", "\0", "\ud800", "[1]", "file://[", "http://a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "conversations", "type", "role"]) | texts, inner, max_size=3
        )
    ),
    max_leaves=6,
)
MODELS = [
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "path": "cat.png"}, {"type": "box", "box": [0, 0, 1, 1]}],
            }
        ]
    },
    {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cat.png"}}]}],
        "weight": 1,
    },
    {
        "images": ["cat.png"],
        "conversations": [{"from": "human", "value": "<image>"}, GPT],
        "system": "a",
        "task": "b",
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "loss": False},
        ],
        "images": [{"path": "cat.png", "bytes": None}],
    },
    {"texts": [{"user": "a", "assistant": "b"}], "images": ["cat.png"]},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
    {"question": "a", "answers": [{"answer": "b"}, "c"], "image": "file://cat.png"},
    {"caption": ["a", "b"], "file_name": "cat.png", "videos": []},
    {"objects": {"bbox": [[0, 0, 2, 2]], "category": ["a"]}, "image": "cat.png"},
    {"sentences": [{"sent": "a"}], "bbox": [0, 0, 2, 2], "image": "cat.png"},
    {
        "messages": [
            {"role": "user", "content": "<image id='a'> <image id=b> <ref-object> a"},
            {"role": "assistant", "content": "Picture 1: <bbox><box>[[0, 0, 2, 2]]</box> b"},
        ],
        "objects": {"bbox": [[0, 0, 4, 3]], "ref": ["c"], "image_id": [0]},
        "images": {"a": "cat.png", "b": "cat.png"},
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "path": "cat.png"},
                    {"type": "box", "box": [0, 0, 4, 3], "pixels": True, "label": "a", "image": 0},
                    {"type": "point", "point": [0, 0.5]},
                    {"type": "region", "region": [[0, 0.5], [1, 1], [0.5, 0]]},
                ],
            }
        ]
    },
]


def places_in(record):
    """Every place where something stands in a record."""
    items = (
        record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    )
    for key, value in items:
        yield (key,)
        yield from ((key, *rest) for rest in places_in(value))


@st.composite
def damaged(draw):
    record = draw(st.sampled_from(MODELS))
    return json.dumps(change(record, draw(st.sampled_from(list(places_in(record)))), draw(anything))).encode()


@given(data=st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()) | damaged())
@settings(unhurried, max_examples=300)
@pytest.mark.parametrize(
    "reader",
    [Messages, OpenAIMessages, LLaVA, read, partial(read, box_format="pixels xywh", bad_boxes="clip")],
)
def test_garbage_gives_our_errors_only(reader, data):
    Path("data.jsonl").write_bytes(data)
    message = "data.jsonl"
    try:
        for conversation in reader("data.jsonl"):
            assert pickle.loads(pickle.dumps(conversation)) == conversation
    except UserError as error:
        message = str(error)
    assert all(line.isprintable() and "data.jsonl" in line for line in message.encode().decode().split("\n"))
