"""Scores of many answers against the packages that publish them: sacrebleu, rouge-score and jiwer."""

from collections import Counter

import pytest

from lightning_vlm.metrics.corpus import BLEU, CER, CHRF, WER, rouge

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


@pytest.mark.parametrize(("score", "expected"), [(WER, 0.4), (CER, 0.45454545454545453)])
def test_error_rates(score, expected):
    answers, right = ["hello duck", "the cat sat down"], [["hello world"], ["the cat sat"]]
    assert over_answers(score, answers, right) == pytest.approx(expected)
    assert score.value(score.sums("hello", ["hallo", "hello"])) == 0, "the nearest counts"
    assert score.value(score.sums("hello", [""])) is None


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
