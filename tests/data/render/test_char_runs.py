"""Who wrote each character, and what each token is: small texts whose every character is known."""

import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from lightning_vlm.data.boxes.codec import Coordinate
from lightning_vlm.data.render.answer_places import AnswerPlace
from lightning_vlm.data.render.char_runs import CharRun, char_runs, without_front
from lightning_vlm.data.render.markers import ANSWER, DEFINITION, split_at_markers, text_marker
from lightning_vlm.data.render.text_span import TextSpan
from lightning_vlm.data.render.tokens import encode
from lightning_vlm.kinds import Kind

SPECIAL = re.compile("<end>")
LETTERS = {Kind.SPECIAL: "s", Kind.IMAGE: "i", Kind.INSTRUCTION: "u", Kind.RESPONSE: "a", Kind.BOX: "b"}


def span(text, answer=False, weight=1.0, boxes=(), coordinates=()):
    kinds = bytearray([Kind.RESPONSE if answer else Kind.INSTRUCTION] * len(text))
    for start, stop in boxes:
        kinds[start:stop] = bytes([Kind.BOX]) * (stop - start)
    weights = np.full(len(text), weight, np.float32)
    return TextSpan(text, bytes(kinds), weights, answer, weight, "key", False, boxes, coordinates)


def letters(kinds):
    return "".join(LETTERS[kind] for kind in kinds)


def runs_of(marked, spans, answers=(), trailer="", bos="<s>"):
    """Runs that have a text: text, kinds, number of the answer, weights."""
    runs = char_runs(split_at_markers(marked), spans, answers, trailer, SPECIAL, bos)
    return [run for run in runs if run.text]


def seen(runs):
    return [
        (run.text, letters(run.kinds), run.answer, None if run.weights is None else run.weights.tolist())
        for run in runs
    ]


def test_two_answers_and_a_picture():
    begin, end = ANSWER
    marked = (
        f"U:\ue002<img><s>\ue003{text_marker(0)}|A:{begin} {text_marker(1)};{end}"
        f"|U:{text_marker(2)}|A:{begin}{text_marker(3)};{end}."
    )
    spans = [span("Why"), span("So", True, 0.5), span("Eh"), span("No", True, 3.0)]
    answers = [AnswerPlace(0, 0, 0.5, 0.25, True), AnswerPlace(0, 0, 3.0, 3.0, True)]
    runs = runs_of(marked, spans, answers, ".")
    assert seen(runs) == [
        ("U:", "ss", 0, None),
        ("<img>", "iiiii", 0, None),
        ("<s>", "sss", 0, None),
        ("Why", "uuu", 0, None),
        ("|A:", "sss", 0, None),
        (" ", "a", 1, [0.5]),
        ("So", "aa", 1, [0.5, 0.5]),
        (";", "a", 1, [0.25]),
        ("|U:", "sss", 0, None),
        ("Eh", "uu", 0, None),
        ("|A:", "sss", 0, None),
        ("No", "aa", 2, [3, 3]),
        (";", "a", 2, [3]),
        (".", "s", 0, None),
    ]
    assert [run.text for run in runs if run.from_user] == ["Why", "So", "Eh", "No"]
    assert not any(run.literal or run.is_box for run in runs)


@pytest.mark.parametrize("trailer", ["", "."])
def test_what_a_processor_adds_at_the_end_belongs_before_the_first_answer(trailer):
    begin, end = ANSWER
    marked = f"{text_marker(0)}{begin}{text_marker(1)}{end}{trailer}\n"
    answers = [AnswerPlace(0, 0, 1.0, 1.0, False)]
    runs = runs_of(marked, [span("Why"), span("So", True)], answers, trailer)
    expected = [("Why", "uuu", 0), ("\n", "s", 0), ("So", "aa", 1), *([(".", "s", 0)] if trailer else [])]
    assert [one[:3] for one in seen(runs)] == expected
    asked = runs_of(f"{text_marker(0)}{trailer}\n", [span("Why")], (), trailer)
    assert "".join(run.text for run in asked) == f"Why{trailer}\n"


def test_what_tells_of_tools_is_an_instruction():
    start, stop = DEFINITION
    runs = runs_of(f"S:{start}tools{stop}|{text_marker(0)}", [span("Why")])
    assert [one[:2] for one in seen(runs)] == [("S:", "ss"), ("tools", "uuuuu"), ("|", "s"), ("Why", "uuu")]


def test_a_text_that_spells_a_special_token_is_literal_and_a_box_is_not():
    number = Coordinate(4, 5, 0, 0, 1000)
    given = span("At <end>7<end>!", True, 1.0, ((3, 14),), (number._replace(start=8, stop=9),))
    begin, end = ANSWER
    answers = [AnswerPlace(0, 0, 1.0, 1.0, False)]
    marked = f"{text_marker(1)}{begin}{text_marker(0)}{end}"
    asked, before, box, behind = runs_of(marked, [given, span("<end>?")], answers)
    assert (asked.literal, asked.is_box) == (True, False)
    assert (before.text, before.literal, before.is_box) == ("At ", False, False)
    assert (box.text, box.literal, box.is_box, letters(box.kinds)) == ("<end>7<end>", False, True, "b" * 11)
    assert box.coordinates == (number._replace(start=5, stop=6),)
    assert (behind.text, behind.answer, behind.weights.tolist()) == ("!", 1, [1.0])


@pytest.mark.parametrize("behind", [" ", ""])
def test_what_a_processor_writes_in_front_is_its_picture(behind):
    pieces = split_at_markers(f"<s><img></img>{behind}U:{text_marker(0)}.")
    rest, runs = without_front(pieces, "U:", "<s>")
    assert [(piece.before, piece.number) for piece in rest] == [("U:", 0), (".", None)]
    assert [(run.text, letters(run.kinds)) for run in runs if run.text] == [
        ("<s>", "sss"), ("<img></img>", "i" * 11), *([(" ", "s")] if behind else []),
    ]  # fmt: skip
    for begin in ("<s><img></img> U:", "other"):
        assert without_front(split_at_markers(f"<s><img></img> U:{text_marker(0)}."), begin, "<s>")[1] == []


@pytest.fixture(scope="module")
def tokenizer():
    """Tokens are letters, the pairs `ab` and `cd` and `<end>`; `^` and `~` are put around a text."""
    words = ["^", "~", *"abcd?<>end", "ab", "cd", "en", "<en", "<end", "<end>"]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    merges = [("a", "b"), ("c", "d"), ("e", "n")]
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.add_special_tokens(["^", "~", "<end>"])
    around = [("^", vocabulary["^"]), ("~", vocabulary["~"])]
    made.post_processor = processors.TemplateProcessing(single="^ $A ~", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="^", eos_token="~", unk_token="?")


def run(text, answer=0, weights=None, **more):
    kind = Kind.RESPONSE if answer else Kind.INSTRUCTION
    if answer and weights is None:
        weights = [1.0] * len(text)
    weights = None if weights is None else np.float32(weights)
    return CharRun(text, bytes([kind]) * len(text), answer, weights, **more)


def test_tokens_are_cut_where_answers_begin_and_weights_change(tokenizer):
    encoded = encode(tokenizer, [run("aba", from_user=True), run("bcd", 1, [0.5, 2, 2])], {})
    ids = encoded.inputs["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["^", "ab", "a", "b", "cd", "~"]
    assert encoded.inputs["attention_mask"] == [[1] * 6]
    assert encoded.weights.tolist() == [1, 1, 1, 0.5, 2, 1]
    assert encoded.from_user.tolist() == [False, True, True, False, False, False]
    assert letters(encoded.kinds) == "suuaas"
    assert encoded.spans[1:-1].tolist() == [[0, 2], [2, 3], [3, 4], [4, 6]]


def test_the_first_token_is_cut_too(tokenizer):
    encoded = encode(tokenizer, [run("a"), run("bcd", 1)], {"add_special_tokens": False})
    assert tokenizer.convert_ids_to_tokens(encoded.inputs["input_ids"][0]) == ["a", "b", "cd"]


def test_a_token_is_the_users_only_if_all_of_it_is_and_of_the_strongest_kind(tokenizer):
    mixed = [run("a", from_user=True), CharRun("b", bytes([Kind.SPECIAL])), run("cd", from_user=True)]
    encoded = encode(tokenizer, mixed, {"add_special_tokens": False})
    assert tokenizer.convert_ids_to_tokens(encoded.inputs["input_ids"][0]) == ["ab", "cd"]
    assert encoded.from_user.tolist() == [False, True]
    assert list(encoded.kinds) == [max(Kind.SPECIAL, Kind.INSTRUCTION), Kind.INSTRUCTION]
    boxed = encode(tokenizer, [run("cd", from_user=True, is_box=True)], {"add_special_tokens": False})
    assert boxed.from_user.tolist() == [False]


def test_a_literal_is_written_in_ordinary_tokens_and_alone(tokenizer):
    whole = encode(tokenizer, [run("a<end>b")], {"add_special_tokens": False})
    assert tokenizer.convert_ids_to_tokens(whole.inputs["input_ids"][0]) == ["a", "<end>", "b"]
    runs = [run("a"), run("<end>", literal=True, from_user=True), run("<end>")]
    encoded = encode(tokenizer, runs, {"add_special_tokens": False})
    tokens = tokenizer.convert_ids_to_tokens(encoded.inputs["input_ids"][0])
    assert tokens == ["a", "<", "en", "d", ">", "<end>"]
    assert encoded.from_user.tolist() == [False, True, True, True, True, False]


def test_no_text_is_what_is_added(tokenizer):
    encoded = encode(tokenizer, [], {})
    assert tokenizer.convert_ids_to_tokens(encoded.inputs["input_ids"][0]) == ["^", "~"]
    assert letters(encoded.kinds) == "ss"
    assert encoded.weights.tolist() == [1, 1]
    assert encode(tokenizer, [run("")], {"add_special_tokens": False}).inputs["input_ids"] == [[]]
