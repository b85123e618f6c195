"""Scores of short answers against numbers of the published implementations, computed by them."""

import pytest

from lightning_vlm.metrics.choices import choice_accuracy, choices_of, letter_of
from lightning_vlm.metrics.short_answers import anls, relaxed_accuracy
from lightning_vlm.metrics.vqa import normalized, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),  # of `EvalAIAnswerProcessor` of MMF and lmms-eval, its two steps of VQA v2
    [
        ("The two dogs.", "2 dogs"),
        ("A 3.5, the 1,000!", "3.5 1000"),
        ("dont", "don't"),
        ("couldntve hed've", "couldntve he'd've"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("(x) [y] {z}", "x y z"),
        ("12:30 a.m.", "12:30 am"),
        ("U.S.A.", "usa"),
        ("t-shirt\n", "t shirt"),
        ("none", "0"),
        ("somebody'd", "somebodyd"),
        ("the", ""),
    ],
)
def test_normalization_of_vqa(answer, expected):
    assert normalized(answer) == expected


@pytest.mark.parametrize(
    ("same", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)  # the official table of min(n/3, 1) over all ways to leave one of ten out
def test_vqa_accuracy_of_ten_people(same, expected):
    people = ["Red."] * same + [f"other {number}" for number in range(10 - same)]
    assert vqa_accuracy("the red", people) == pytest.approx(expected)


def test_vqa_accuracy_needs_others():
    assert vqa_accuracy("red", ["red"] * 3) is None
    assert vqa_accuracy("red", ["red"] * 4) == 1.0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),  # of the package `anls` 0.0.2, threshold 0.5
    [
        ("Jon Smith", ["John Smith", "J. Smith"], 0.9),
        ("15 March 2020", ["March 15, 2020", "15 march 2020"], 1.0),
        ("its", ["it"], 2 / 3),
        ("hello there", ["hello world"], 0.5454545454545454),
        ("UNIVERSITY of california", ["university of california, san diego", "ucsd"], 0.6857142857142857),
        ("0.28", ["0.82", "28%"], 0.0),
    ],
)
def test_anls(answer, references, expected):
    assert anls(answer, references) == pytest.approx(expected)
    assert anls(f"  {answer.upper()}\n", references[::-1]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right", "expected"),  # of `relaxed_correctness` of Pix2Struct, Qwen-VL and lmms-eval
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("105.1", "100", 0),
        ("-3", "3", 0),
        ("5%", "5", 0),
        ("5.2%", "5%", 1),
        ("0.05", "5%", 1),
        ("0", "0.0", 0),
        ("0", "0", 1),
        ("Yes", "yes", 1),
        ("no", "yes", 0),
        ("1e3", "1000", 1),
        ("", "3", 0),
    ],
)
def test_relaxed_accuracy(answer, right, expected):
    assert relaxed_accuracy(answer, [right]) == expected
    assert relaxed_accuracy(answer, ["something else", right]) == expected


CHOICES = {"A": "a cat", "B": "a dog", "C": "a red ball"}
COLOURS = {"A": "red", "B": "blue", "C": "dark blue"}


WAYS = ["B", "(B)", "b.", "b", "[B]", "**B**", "B) blue", "\\boxed{B}"]
WAYS += ["Answer: B", "answer: b", "The answer is (B)."]


@pytest.mark.parametrize("text", WAYS)
def test_ways_to_write_a_letter(text):
    assert letter_of(text) == "B"


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("The correct answer is option D.", {}, "D"),
        ("I think it is B", {}, "B"),
        ("Option A is wrong, so the answer is B", {}, "B"),
        ("The answer is: **B**", {}, "B"),
        ("B. The red one, a ball", {}, "B"),
        ("The answer is A.", {}, "A"),
        ("Answer: A", {}, "A"),
        ("A, because it is red", {}, "A"),
        ("a. red", {}, "A"),
        # Articles and words are no letters.
        ("A cat is on the mat.", {}, None),
        ("A red ball", {}, None),
        ("The answer is a red ball.", {}, None),
        ("The answer is A red ball", {}, None),
        ("I don't know", {}, None),
        ("Option b is right, or a", {}, None),
        ("It's a T-shirt of the U.S.A.", {}, None),
        ("A and B", {}, None),
        ("", {}, None),
        # Words of choices.
        ("A cat", CHOICES, "A"),
        ("The answer is a red ball.", CHOICES, "C"),
        ("There is a cat in the picture", CHOICES, "A"),
        ("dark blue", COLOURS, "C"),
        ("It is dark blue.", COLOURS, None),
        ("E", CHOICES, None),
    ],
)
def test_letters(text, choices, expected):
    assert letter_of(text, choices) == expected


def test_choices_stand_on_lines_of_their_own_from_a_on():
    assert choices_of("Which?\n(A) one\n(B) two\n(C) three") == {"A": "one", "B": "two", "C": "three"}
    assert choices_of("B. two\nC. three") == {}
    assert choices_of("A. Einstein wrote it.") == {}


def test_choice_accuracy():
    prompt = "Which animal?\nA. a cat\nB. a dog\nAnswer with the letter."
    assert choice_accuracy("It is a dog.", "B", prompt) == 1
    assert choice_accuracy("A dog", "A", prompt) == 0
    assert choice_accuracy("b", "a dog", prompt) == 1
    assert choice_accuracy("b", "no letter", prompt) is None
