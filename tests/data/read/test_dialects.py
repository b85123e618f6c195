"""Rows as other trainers and the hub write them, all through one reader."""

import base64
import io
import json

import PIL.Image
import pytest

from lightning_vlm.data.images import load_image
from lightning_vlm.data.read.dialects import DIALECTS
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.errors import DataError, UserError
from tests.support.rows import ANSWER, CAT, DOG, GPT

pytestmark = pytest.mark.usefixtures("folder")


def picture():
    """A whole picture that is long enough to be no path."""
    file = io.BytesIO()
    PIL.Image.effect_noise((8, 8), 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


PICTURE = picture()
BASE64 = base64.b64encode(PICTURE).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"


def user(*content):
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(words):
    return {"type": "text", "text": words}


ASKED = [("user", [CAT, "What?"]), ("assistant", ["A cat."])]
PLAIN = [("user", ["What?"]), ("assistant", ["A cat."])]
PLACE = {"type": "image"}
ROWS = {
    "LLaMA-Factory": (
        {"messages": [user("<image>What?"), ANSWER], "images": ["cat.png"]},
        ASKED,
    ),
    "ms-swift, one image": (
        {"messages": [user("<image>\nWhat?"), ANSWER], "image": "cat.png", "id": 1},
        ASKED,
    ),
    "TRL: places": ({"messages": [user(PLACE, text("What?")), ANSWER], "images": ["cat.png"]}, ASKED),
    "TRL: no places": ({"messages": [user("What?"), ANSWER], "images": ["cat.png"]}, ASKED),
    "places in parts of text": (
        {"messages": [user(text("<image>\nWhat?")), ANSWER], "images": ["cat.png"]},
        ASKED,
    ),
    "a part alone": (
        {"messages": [user("What?"), {"role": "assistant", "content": text("A cat.")}]},
        PLAIN,
    ),
    "numbered places": (
        {
            "messages": [user({**PLACE, "index": 1}, {**PLACE, "index": 0}, text("?")), ANSWER],
            "images": ["cat.png", "pictures/dog.png"],
        },
        [("user", [DOG, CAT, "?"]), ("assistant", ["A cat."])],
    ),
    "no picture, by an empty text": ({"messages": [user("What?"), ANSWER], "image": ""}, PLAIN),
    "no picture, by an empty list": ({"messages": [user("What?"), ANSWER], "images": []}, PLAIN),
    "no picture, by a list of nothing": ({"messages": [user("What?"), ANSWER], "images": [None, ""]}, PLAIN),
    "LLaVA without a picture": (
        {"conversations": [{"from": "human", "value": "What?"}, GPT], "image": ""},
        PLAIN,
    ),
    "empty videos": (
        {"messages": [user("What?"), ANSWER], "videos": [], "audios": None, "tools": "[]"},
        PLAIN,
    ),
    "ShareGPT with roles": ({"conversations": [user("<image>What?"), ANSWER], "image": "cat.png"}, ASKED),
    "messages with from and value": ({"messages": [{"from": "human", "value": "What?"}, GPT]}, PLAIN),
    "lists as JSON in a text": (
        {"messages": json.dumps([user("<image>What?"), ANSWER]), "images": '["cat.png"]'},
        ASKED,
    ),
    "TRL: prompt and completion": (
        {"prompt": [user("What?")], "completion": [ANSWER], "images": ["cat.png"]},
        ASKED,
    ),
    "prompt and completion": ({"prompt": "What?", "completion": "A cat."}, PLAIN),
    "query and response": ({"query": "<image>What?", "response": "A cat.", "images": ["cat.png"]}, ASKED),
    "system and history": (
        {"system": "S", "query": "What?", "response": "A cat.", "history": [["a", "b"]]},
        [("system", ["S"]), ("user", ["a"]), ("assistant", ["b"]), *PLAIN],
    ),
    "Alpaca": (
        {"instruction": "Name it.", "input": "miaow", "output": "A cat."},
        [("user", ["Name it.\nmiaow"]), ("assistant", ["A cat."])],
    ),
    "Alpaca without input": ({"instruction": "What?", "input": "", "output": "A cat."}, PLAIN),
    "question and answer": ({"question": "What?", "answer": "A cat.", "image": "cat.png"}, ASKED),
    "prompt and output": ({"prompt": "What?", "output": "A cat.", "image": "cat.png"}, ASKED),
    "user and assistant": ({"user": "What?", "assistant": "A cat.", "image": "cat.png"}, ASKED),
    "a number as answer": (
        {"question": "What?", "answer": 3},
        [("user", ["What?"]), ("assistant", ["3"])],
    ),
    "a list spelt in an answer": (
        {"question": "What?", "answer": '["a"]'},
        [("user", ["What?"]), ("assistant", ['["a"]'])],
    ),
    "VQA": ({"question": "What?", "answers": ["a", "A cat.", "A cat."], "image": "cat.png"}, ASKED),
    "VQAv2": (
        {"question": "What?", "answers": [{"answer": "A cat.", "answer_id": 1}, {"answer": "dog"}]},
        PLAIN,
    ),
    "SQuAD": ({"question": "What?", "answers": {"text": ["A cat."], "answer_start": [0]}}, PLAIN),
    "turns as an object of lists": (
        {
            "conversations": {"from": ["human", "gpt"], "value": ["<image>\nWhat?", "A cat."]},
            "image": "cat.png",
        },
        ASKED,
    ),
    "capital letters": ({"Question": "What?", "Answer": "A cat.", "Image": "cat.png"}, ASKED),
    "the Cauldron": (
        {
            "texts": [
                {"user": "What?", "assistant": "A cat.", "source": "x"},
                {"user": "Else?", "assistant": "No."},
            ],
            "images": ["cat.png"],
        },
        [*ASKED, ("user", ["Else?"]), ("assistant", ["No."])],
    ),
    "caption": ({"image": "cat.png", "caption": "A cat."}, [("user", [CAT]), ("assistant", ["A cat."])]),
    "imagefolder": ({"file_name": "cat.png", "text": "A cat."}, [("user", [CAT]), ("assistant", ["A cat."])]),
    "OpenAI's responses": (
        {
            "messages": [
                user(
                    {"type": "input_image", "image_url": "cat.png"}, {"type": "input_text", "text": "What?"}
                ),
                {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]},
            ]
        },
        ASKED,
    ),
    "`<image>` in a text without a column of pictures": (
        {"messages": [user("<image>"), ANSWER]},
        [("user", ["<image>"]), ("assistant", ["A cat."])],
    ),
}


@pytest.mark.parametrize(("row", "expected"), ROWS.values(), ids=ROWS)
def test_rows_of_every_dialect(row, expected, write, words):
    (conversation,) = read(write(row))
    assert words(conversation) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "cat.png"},
        {"type": "image", "image": "cat.png", "max_pixels": 50176, "text": None},
        {"type": "image", "image": "file://{folder}/cat.png"},
        {"type": "image", "image": "file://cat.png"},
        {"type": "image", "url": "cat.png"},
        {"type": "image", "path": "cat.png"},
        {"type": "image_url", "image_url": "cat.png"},
        {"type": "image_url", "image_url": {"url": "file://{folder}/cat.png", "detail": "low"}},
        {"image": "cat.png"},
        {"type": "image", "image": DATA_URL},
        {"type": "image", "image": BASE64},
        {"type": "image", "base64": BASE64},
        {"type": "image", "data": BASE64},
        {"type": "image_url", "image_url": {"url": DATA_URL}},
        {"type": "image", "image": {"bytes": BASE64, "path": None}},
        {"type": "image", "image": {"bytes": None, "path": "cat.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image", "source": {"type": "url", "url": "cat.png"}},
    ],
    ids=str,
)
def test_a_picture_in_a_part(part, folder, write):
    record = json.dumps({"messages": [user(part, text("What?")), ANSWER]}).replace("{folder}", str(folder))
    (conversation,) = read(write(record))
    (image,) = conversation.images
    expected = PIL.Image.open(io.BytesIO(PICTURE) if image.data else "cat.png").convert("RGB")
    assert load_image(image, "a", "b").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("row", "key", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "", "data.columns: {completion: chosen}"),
        ({"messages": [user("a")], "videos": ["a.mp4"]}, "videos[0]", "a video file below the image root"),
        ({"messages": [user({"type": "audio", "audio": "a.wav"})]}, "messages[0].content[0].type", "'audio'"),
        (
            {"question": "a", "answer": 1, "choices": ["x", "y"]},
            "answer",
            "choices can't be read yet, write them into the question",
        ),
        (
            {"messages": [user("<ref-object>"), {**ANSWER, "content": "<bbox>"}], "objects": {"bbox": [[1]]}},
            "objects.bbox[0]",
            "1 numbers",
        ),
        ({"question": "a", "answers": []}, "answers", "an empty list"),
        ({"question": "a", "answers": [["x"]]}, "answers[0]", "a list of 1"),
        ({"query": "a", "response": "b", "history": ["c"]}, "history[0]", "a pair [question, answer]"),
        ({"texts": [{"user": "a"}]}, "texts[0]", "'user', 'assistant'"),
        ({"messages": [user("a"), {**ANSWER, "loss": "no"}]}, "messages[1].loss", "true, false or a number"),
        (
            {"messages": [user("a"), {**ANSWER, "loss": False, "weight": 1}]},
            "messages[1].loss",
            "'weight' and 'loss'",
        ),
        ({"messages": [user("a"), {**ANSWER, "weight": 1e38}]}, "messages[1].weight", "at most 1,000,000"),
        ({"messages": [{**user("a"), "images": ["cat.png"]}]}, "messages[0].images", "beside the turns"),
        ({"messages": [user("<image>a")], "images": []}, "images", "0 pictures and 1 place"),
        (
            {"messages": [user({**PLACE, "index": 3})], "images": ["cat.png"]},
            "messages[0].content[0].index",
            "found 3, but the row has 1 picture",
        ),
        (
            {"messages": [user({"type": "image", "image": "https://a.b/c.png"})]},
            "messages[0].content[0].image",
            "data.allow_urls: true",
        ),
        ({"question": "a", "answer": "b", "wieght": 2}, "wieght", "did you mean 'weight'?"),
        (
            {"foo": "a", "bar": "b"},
            "",
            "found a row with the keys 'foo', 'bar'; expected a known format: messages of OpenAI, TRL or",
        ),
        ({"question": "a", "image": "cat.png", "weight": 1e38}, "weight", "found 1e+38; expected at most"),
    ],
)
def test_rows_that_are_refused(row, key, expected, write):
    with pytest.raises(DataError) as caught:
        read(write(row))
    assert (caught.value.source, caught.value.key) == ("data.jsonl:1", key)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("turn", "weight"),
    [
        ({}, 1.0),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"train": False}, 0.0),
        ({"weight": 0}, 0.0),
        ({"weight": 1}, 1.0),
        ({"loss_scale": 0.5}, 0.5),
        ({"loss": None, "weight": None}, 1.0),
    ],
    ids=str,
)
def test_the_weight_of_a_turn(turn, weight, write):
    sharegpt = {"conversations": [{"from": "human", "value": "What?"}, {**GPT, **turn}]}
    (first, second) = read(write({"messages": [user("What?"), {**ANSWER, **turn}]}, sharegpt))
    assert [message.weight for message in first.messages] == [1.0, weight]
    assert [message.weight for message in second.messages] == [1.0, weight]


def test_our_own_format_has_weights_of_turns(write):
    (conversation,) = Messages(write({"messages": [user("What?"), {**ANSWER, "weight": 0.25}]}))
    assert conversation.messages[1].weight == 0.25


def test_what_is_ignored_or_chosen_is_said(write):
    rows = [
        {"question": "What?", "answers": ["a", "b"], "id": 1, "split": None},
        {"question": "What?", "answers": ["a"], "id": 2, "height": 4},
        {"messages": [{**user("a"), "name": "Ada"}, ANSWER], "images": ["cat.png"]},
    ]
    assert read(write(*rows)).notes == [
        "ignored: 'height', 'turns[*].name' (1 row)",
        "of several 'answers' the most common is learned, the first of equals (1 row)",
        "pictures without an '<image>' stand before the first question, as TRL and ms-swift put them (1 row)",
    ]


def test_columns_are_mapped(write, words):
    path = write({"frage": "What?", "antwort": "A cat.", "bild": "cat.png"})
    columns = {"question": "frage", "answer": "antwort", "image": "bild"}
    (conversation,) = read(path, columns=columns)
    assert words(conversation) == ASKED
    with pytest.raises(UserError, match=r"data.columns.answer: found 'antwrt', .* did you mean 'antwort'\?"):
        read(path, columns={**columns, "answer": "antwrt"})
    with pytest.raises(UserError, match=r"data.columns: found 'qestion'; .* did you mean 'question'\?"):
        read(path, columns={"qestion": "frage"})
    plain = read(
        write({"messages": [user("What?"), ANSWER]}), columns=columns
    )  # validation, of another format
    assert plain.notes == ["data.columns has no effect: its columns aren't there, and aren't needed (1 row)"]
    swapped = {"question": "answer", "answer": "question"}
    (conversation,) = read(write({"question": "A cat.", "answer": "What?"}), columns=swapped)
    assert words(conversation) == PLAIN
    preference = write({"prompt": "What?", "chosen": "A cat.", "rejected": "b"})
    (conversation,) = read(preference, columns={"completion": "chosen"})
    assert words(conversation) == PLAIN


def test_every_dialect_says_what_it_needs():
    assert len({dialect.name for dialect in DIALECTS}) == len(DIALECTS)
    for place, dialect in enumerate(DIALECTS):
        for earlier in DIALECTS[:place]:
            assert not set(earlier.needs) <= set(dialect.needs), f"{dialect.name} is never reached"
