"""Several right answers, and what an answer is about, from the columns that data sets have."""

import json

import pytest

from lightning_vlm.data.read.readers import DataFile, Messages
from lightning_vlm.errors import DataError

MESSAGES = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "red"}]
TEN = ["red", "red", "dark red", "red", "maroon", "red", "red", "pink", "red", "red"]
VQA_V2 = [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(TEN, 1)]


def written(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("row", "learned", "references"),
    [
        ({"question": "Which colour?", "answers": VQA_V2, "multiple_choice_answer": "red"}, "red", TEN),
        ({"question": "Which colour?", "answers": TEN}, "red", TEN),  # TextVQA
        ({"question": "Which year?", "answers": ["1998", "in 1998"]}, "1998", ["1998", "in 1998"]),  # DocVQA
        ({"question": "Which year?", "answers": '["1998", "in 1998"]'}, "1998", ["1998", "in 1998"]),  # CSV
        ({"query": "How much?", "label": ["12"]}, "12", ["12"]),  # ChartQA
        ({"question": "Which colour?", "answer": "red"}, "red", []),
        ({"question": "?", "answer": "red", "references": ["red", "crimson"]}, "red", ["red", "crimson"]),
        ({"messages": MESSAGES, "references": ["red", "crimson"]}, "red", ["red", "crimson"]),
        ({"messages": MESSAGES, "references": [{"title": "a paper"}]}, "red", []),
    ],
)
def test_references_of_rows(tmp_path, row, learned, references):
    (conversation,) = DataFile(written(tmp_path, row))
    assert conversation.messages[-1].parts[0].text == learned
    assert conversation.references == tuple(references)


def test_columns_may_have_other_names(tmp_path):
    row = {"messages": MESSAGES, "gold": ["red", "crimson"], "kind": "attribute"}
    (conversation,) = DataFile(written(tmp_path, row), columns={"references": "gold", "level": "kind"})
    assert (conversation.references, conversation.level) == (("red", "crimson"), "attribute")


@pytest.mark.parametrize(("level", "expected"), [("relation", "relation"), ("Level 5", None), (3, None)])
def test_levels_of_others_are_ignored_and_said(tmp_path, level, expected):
    source = DataFile(written(tmp_path, {"messages": MESSAGES, "level": level}))
    assert source[0].level == expected
    assert any("'level'" in line for line in source.notes) == (expected is None)


def test_our_own_format_is_strict(tmp_path):
    row = {"messages": MESSAGES, "references": ["red", "crimson"], "level": "attribute"}
    (conversation,) = Messages(written(tmp_path, row))
    assert (conversation.references, conversation.level) == (("red", "crimson"), "attribute")
    for wrong, message in (
        ({"level": "atribute"}, "did you mean 'attribute'"),
        ({"references": "red"}, "a list of texts"),
        ({"references": ["red", 3]}, r"references\[1\]"),
    ):
        with pytest.raises(DataError, match=message):
            Messages(written(tmp_path, row | wrong))
