"""Scores of many answers against the packages that publish them: sacrebleu, rouge-score and jiwer."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import char_error_rate, word_error_rate

from lightning_vlm.metrics.corpus import BLEU, CHRF, error_sums, rouge
from lightning_vlm.metrics.known_scores import SCORES
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice

ANSWERS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
"""The example of sacrebleu's documentation."""


def over_answers(score, answers, references):
    """The sums of each answer, added up as over ranks."""
    total = Counter()
    for answer, of_answer in zip(answers, references, strict=True):
        total.update(score.sums(answer, of_answer))
    return score.value(total)


@pytest.mark.parametrize(("score", "expected"), [(BLEU, 48.530827009929865), (CHRF, 59.72751782684763)])
def test_bleu_and_chrf(score, expected):
    assert over_answers(score, ANSWERS, REFERENCES) == pytest.approx(expected / 100, abs=1e-5)
    assert over_answers(score, ANSWERS[::-1], REFERENCES[::-1]) == pytest.approx(expected / 100, abs=1e-5)


@pytest.mark.parametrize("place", range(3))
def test_chrf_of_one_answer(place):
    expected = [100.0, 35.34635301425291, 51.87740799504779][place]
    found = CHRF.value(CHRF.sums(ANSWERS[place], REFERENCES[place]))
    assert found == pytest.approx(expected / 100, abs=1e-5), "torchmetrics adds a small number"


@pytest.mark.parametrize(("words", "expected"), [(True, 0.4), (False, 0.45454545454545453)])
def test_error_rates(words, expected):
    total = Counter(error_sums(words, "hello duck", ["hello world"]))
    total.update(error_sums(words, "the cat sat down", ["the cat sat"]))
    assert total["sum"] / total["count"] == pytest.approx(expected)
    assert error_sums(words, "hello", ["hallo", "hello"])["sum"] == 0, "the nearest counts"
    assert error_sums(words, "hello", [""])["count"] == 0


texts = st.lists(st.sampled_from(["a", "b", " ", "é", "ab ", "\n"]), max_size=12).map("".join)


@settings(max_examples=100, deadline=None)
@given(texts, texts)
def test_distances_against_torchmetrics(answer, right):
    for words, rate in ((False, char_error_rate), (True, word_error_rate)):
        sums = error_sums(words, answer, [right])
        if sums["count"]:
            assert sums["sum"] / sums["count"] == pytest.approx(float(rate([answer], [right])))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_whatever_a_model_writes_has_scores(text, references):
    answer = Prediction("a", "vqa", text, references[0], prompt=text, references=tuple(references))
    values = ScoreChoice(list(SCORES)).values(answer)
    assert all(0 <= value <= 1 for name, value in values.items() if name not in ("cer", "wer"))
    right = answer._replace(text=references[0])
    values = ScoreChoice(["exact_match", "token_f1", "anls", "relaxed_accuracy", "cer", "wer"]).values(right)
    assert values.pop("cer", 0) == values.pop("wer", 0) == 0
    assert set(values.values()) == {1.0}


def test_pages_of_text():
    """Cell by cell, its table of 20 million cells would take ten seconds."""
    page = "The quick brown fox jumps over the lazy dog. " * 100
    misread = page.replace("quick", "quiek").replace("lazy ", "la")
    assert error_sums(False, misread, [page]) == {"sum": 100 + 300, "count": len(page)}
    assert error_sums(True, misread, [page])["sum"] == 100 + 200


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        (
            "the quick brown fox jumps over the lazy dog",
            "the quick brown dog jumps on the log",
            (0.7058823529411765, 0.26666666666666666, 0.5882352941176471),
        ),
        (
            "Two dogs, running!",
            "two dogs are running on grass",
            (0.6666666666666666, 0.28571428571428575, 0.6666666666666666),
        ),
        ("a", "b", (0, 0, 0)),
    ],
)
def test_rouge(answer, right, expected):
    for kind, value in zip(("rouge1", "rouge2", "rougeL"), expected, strict=True):
        assert rouge(kind, answer, [right]) == pytest.approx(value, abs=1e-6)
        assert rouge(kind, answer, ["zzz", right]) == pytest.approx(value, abs=1e-6)
