"""Length scores by hand; lengths and probabilities on small tensors."""

import math

import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.ranking import answer_lengths, length_score, token_log_probs


@pytest.mark.parametrize("length", [1, 2, 5, 40])
@pytest.mark.parametrize("alpha", [0, 0.6, 0.8, 1, 2, -0.5])
def test_both_forms(length, alpha):
    assert length_score(-7.5, length, alpha) == pytest.approx(-7.5 * math.exp(-alpha * math.log(length)))
    gnmt = (5 + length) ** alpha / (5 + 1) ** alpha  # as the paper has it
    assert length_score(-7.5, length, alpha, "gnmt") == pytest.approx(-7.5 / gnmt)


def test_perplexity_has_no_length_bias_the_probability_has():
    """Perplexity is a mean over tokens already; a sum of logarithms favours short answers."""
    token = math.log(0.25)
    short, long = (3 * token, 3), (12 * token, 12)
    assert length_score(*short, alpha=0) > length_score(*long, alpha=0)
    assert length_score(*short) == pytest.approx(length_score(*long))
    assert math.exp(-length_score(*long)) == pytest.approx(4)  # the perplexity
    assert length_score(*short, alpha=0.7) > length_score(*long, alpha=0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0), "length: found 0; expected at least 1 token"),
        ((-1.0, 2, math.inf), "alpha: found inf; expected a finite number"),
        ((-1.0, 2, math.nan), "alpha: found nan"),
        ((-1.0, 2, 1.0, "mean"), "form: found 'mean'; expected power or gnmt"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        length_score(*arguments)


def test_lengths():
    tokens = torch.tensor(
        [
            [5, 6, 2, 0, 0],  # ended
            [5, 0, 6, 3, 3],  # by the other end; a padding token inside counts
            [2, 5, 5, 5, 5],  # at once
            [5, 5, 5, 5, 5],  # never
            [5, 5, 0, 0, 0],  # by something else, such as stop_strings
            [0, 0, 0, 0, 0],
        ]
    )
    assert answer_lengths(tokens, ends=[2, 3], pad=0).tolist() == [3, 4, 1, 5, 2, 1]
    assert answer_lengths(tokens[:3], ends=[2], pad=2).tolist() == [3, 5, 1]
    assert answer_lengths(tokens[3:], ends=[], pad=None).tolist() == [5, 5, 5]


def test_probabilities_of_answers_that_change_rows():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, 11, generator=generator) for _ in range(4)]
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    beams = torch.tensor([[0, 2, 1, 1], [2, 0, -1, -1]])
    found = token_log_probs(logits, tokens, beams)
    for answer, steps in ((0, 4), (1, 2)):
        for step in range(steps):
            row = logits[step][beams[answer, step]].double().softmax(0)
            expected = row[tokens[answer, step]].log().item()
            assert found[answer, step].item() == pytest.approx(expected, rel=1e-6)
    rows = token_log_probs([one[:2] for one in logits], tokens)
    assert rows[1, 3].item() == pytest.approx(logits[3][1].double().log_softmax(0)[0].item(), rel=1e-6)
