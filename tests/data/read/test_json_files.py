import json
from pathlib import Path

import pytest

from lightning_vlm.data.read.readers import LLaVA, Messages, OpenAIMessages, read
from lightning_vlm.errors import DataError
from tests.support.rows import ANSWER

pytestmark = pytest.mark.usefixtures("folder")


PARTS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER],
    "task": "a",
    "weight": 1,
}


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        (b'{"messages": [}', "column 15", "broken JSON (Expecting value) at '}'"),
        (b'{"messages"', "column 12", "Expecting ':' delimiter"),
        (b"{'messages': []}", "column 2", "property name enclosed in double quotes"),
        (b'{"messages": []} x', "column 18", "Extra data"),
        (b'{"a": "\xff"}', "byte 8", "the byte 0xff, which is not UTF-8"),
        (b"[" * 200_000, "", "nested too deep"),
        (b"9" * 5_000, "", "too many digits"),
        (b"7", "", "found 7; expected an object with the keys 'messages', 'task', 'weight'"),
        (b"null", "", "found null"),
    ],
)
def test_bad_lines(line, key, message):
    Path("data.jsonl").write_bytes(json.dumps(PARTS).encode() + b"\r\n\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        Messages("data.jsonl")
    assert (caught.value.source, caught.value.key) == ("data.jsonl:3", key)
    assert message in str(caught.value)
    source = Messages("data.jsonl", on_bad_sample="skip")
    assert len(source) == len(source.skipped) == 1


@pytest.mark.parametrize("reader", [Messages, OpenAIMessages, LLaVA, read])
def test_no_file_and_no_samples(reader):
    for content in ("", "\n\n", "[]", " [ ] "):
        Path("empty.json").write_text(content)
        with pytest.raises(DataError, match=r"^empty.json: found no samples; expected at least one$"):
            reader("empty.json")
    with pytest.raises(DataError, match=r"^missing.jsonl: found no such file; expected a file with one JSON"):
        reader("missing.jsonl")
    with pytest.raises(DataError, match=r"no such file; .*; did you mean empty\.json\?$"):
        reader("emty.json")
    with pytest.raises(DataError, match="null byte"):
        reader("a\0b")


def test_a_folder_is_no_file():
    with pytest.raises(DataError, match=r"pictures: found what can't be opened"):
        Messages("pictures")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_arrays_and_lines_are_the_same(indent, mark):
    records = [
        {"messages": [{"role": "user", "content": text}, ANSWER]}
        for text in ("ä\u2028b", "€\n", "\U0001f600")
    ]
    text = json.dumps(records, indent=indent, ensure_ascii=False)
    Path("data.json").write_text(mark + "\n" + text + "\n", "utf-8")
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    Path("data.jsonl").write_text(mark + lines, "utf-8")
    array, jsonl = Messages("data.json"), Messages("data.jsonl")
    assert [sample.messages for sample in array] == [sample.messages for sample in jsonl]
    at = (
        [2, 2, 2]
        if indent is None
        else [1 + n for n, line in enumerate(["", *text.split("\n")]) if line == "  {"]
    )
    assert [sample.source for sample in array] == [
        f"data.json:{line}[{index}]" for index, line in enumerate(at)
    ]


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ('[\n{"messages": 1}, \n{"a": }]', "data.json:3", "column 7: found broken JSON (Expecting value)"),
        ("[1 2]", "data.json:1", "Expecting ',' or ']'"),
        ("[1,]", "data.json:1", "column 4: found broken JSON (Expecting value) at ']'"),
        ("[1", "data.json:1", "Expecting ',' or ']'"),
        ("[", "data.json:1", "Expecting value"),
        ("[1]\n\nx", "data.json:3", "Expecting nothing after the array"),
        ("[\n\n" + "[" * 200_000, "data.json:3", "nested too deep"),
        ("[1,\n" + "9" * 5000 + "]", "data.json:2", "too many digits"),
    ],
)
def test_broken_arrays_cannot_be_skipped(text, source, message):
    Path("data.json").write_text(text)
    with pytest.raises(DataError) as caught:
        Messages("data.json", on_bad_sample="skip")
    assert caught.value.source == source
    assert message in str(caught.value)


def test_an_array_that_is_no_utf8():
    Path("data.json").write_bytes(b'[1,\n "a\xff"]')
    with pytest.raises(DataError, match=r"^data.json:2: byte 4: found the byte 0xff"):
        Messages("data.json")
