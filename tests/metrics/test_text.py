import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from lightning_vlm.metrics.text import exact_match, token_f1

# Words that SQuAD's normalisation leaves alone: lower case, no articles, no punctuation.
WORDS = st.lists(st.sampled_from(["red", "blue", "circle", "7", "x1", "été"]), max_size=6)
SPACES = st.sampled_from([" ", "  ", "\n", "\t "])


def oracle(prediction, reference):
    scores = squad(
        {"prediction_text": prediction, "id": "0"},
        {"answers": {"answer_start": [0], "text": [reference]}, "id": "0"},
    )
    return scores["exact_match"].item() / 100, scores["f1"].item() / 100


@given(WORDS, WORDS, SPACES)
def test_as_squad_where_its_normalisation_changes_nothing(predicted, right, space):
    prediction, reference = " ".join(predicted), " ".join(right)
    exact, f1 = oracle(prediction, reference)
    assert exact_match(f"{space}{prediction}{space}", reference) == exact
    assert token_f1(space.join(predicted), reference) == pytest.approx(f1, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("STOP", "Stop", 0),
        ("A", "B", 0),
        ("a dog", "dog", 2 / 3),
        ("[125, 250]", "[12, 5250]", 0),
        ("it's", "its", 0),
        ("é", "e", 0),
    ],
)
def test_case_articles_and_punctuation_are_the_answer(prediction, reference, f1):
    assert exact_match(prediction, reference) == 0
    assert token_f1(prediction, reference) == pytest.approx(f1)


def test_inner_space_counts_for_the_exact_match_alone():
    assert exact_match("a  b", "a b") == 0
    assert token_f1("a  b", "a b") == 1


@pytest.mark.parametrize(("one", "other", "score"), [("", "", 1), (" ", "", 1), ("", "a", 0), ("a", " ", 0)])
def test_without_words(one, other, score):
    assert exact_match(one, other) == token_f1(one, other) == score
