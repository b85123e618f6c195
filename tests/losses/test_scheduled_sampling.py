"""The parts of scheduled sampling, against Bengio's formulas, all logits at once, words put in by hand."""

import math

import pytest
import torch
from torch import nn

from lightning_vlm.callbacks.scheduled_sampling import (
    ScheduledSampling,
    predict_tokens,
    replaced,
    replacement_probability,
)
from lightning_vlm.data.batch.collate import Targets
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.logits import LogitOptions

PLAIN = LogitOptions(None, 1.0)


# The probability


def test_the_decays_are_bengios():
    """Teacher forcing at step i of 1,000 or so: 1 - ci, k^i and k / (k + exp(i / k))."""
    for share in torch.linspace(0, 1, 101).tolist():
        steps = 1000
        linear = share * steps / steps
        exponential = 1 - math.exp(-5 / steps) ** (share * steps)
        k = math.exp(5)
        steps = 2 * k * math.log(k)  # half way to it k / (k + exp(i / k)) is 1/2
        sigmoid = 1 - k / (k + math.exp(share * steps / k))
        assert replacement_probability(share, 1.0, "linear") == pytest.approx(linear)
        assert replacement_probability(share, 1.0, "exponential") == pytest.approx(exponential, rel=0.0069)
        assert replacement_probability(share, 1.0, "inverse_sigmoid") == pytest.approx(sigmoid, abs=0.0068)


@pytest.mark.parametrize("decay", ["constant", "linear", "exponential", "inverse_sigmoid"])
def test_from_nothing_to_the_probability(decay):
    def at(progress):
        return replacement_probability(progress, 0.3, decay, start=0.2)

    assert at(0) == at(0.1999) == 0
    assert at(1) == at(7) == pytest.approx(0.3, abs=1e-15)
    values = [at(0.2 + 0.01 * step) for step in range(81)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.3 if decay == "constant" else 0, abs=1e-12)
    assert replacement_probability(0.7, 0.0, decay) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, "probability: found 1.5; expected a number from 0 to 1"),
        ({"probability": math.nan}, "probability: found nan"),
        ({"probability": 0.5, "start": 1.0}, "start: found 1.0; expected a progress"),
        ({"probability": 0.5, "decay": "cosine"}, "decay: found 'cosine'; expected constant, linear"),
        ({"probability": 0.5, "predictions": "best"}, "predictions: found 'best'; expected likeliest"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        ScheduledSampling(**options)


# The predictions


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(16, 37)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, None])
def test_the_likeliest(head, chunk_size):
    hidden = torch.randn(29, 16)
    found = predict_tokens(hidden, head, LogitOptions(1.0, 0.1), chunk_size=chunk_size)
    assert torch.equal(found, head(hidden).argmax(1))
    assert found.dtype == torch.int64
    assert predict_tokens(hidden[:0], head, PLAIN, chunk_size=chunk_size).tolist() == []


@pytest.mark.parametrize("options", [PLAIN, LogitOptions(None, 3.0), LogitOptions(0.5, 4.0)])
def test_drawn_as_often_as_the_model_says(head, options):
    hidden, count = torch.randn(1, 16), 200_000
    logits = head(hidden).double() * options.logit_scale
    if options.softcap:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    expected = logits.softmax(1)[0]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = predict_tokens(hidden.expand(count, 16), head, options, generator)
    shares = torch.bincount(drawn, minlength=37) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() < 4.5 * error).all()


def test_drawn_anew_for_each_seed_and_the_same_for_one(head):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return predict_tokens(hidden, head, PLAIN, generator).tolist()

    hidden = torch.randn(50, 16)
    before = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), before), "the chance of dropout stands where it stood"


# The replacement

LETTERS = {"p": Kind.PAD, "s": Kind.SPECIAL, "i": Kind.IMAGE, "u": Kind.INSTRUCTION, "r": Kind.RESPONSE}
LETTERS |= {"b": Kind.BOX, "e": Kind.ENTITY}


def case(*rows, weightless=""):
    kinds = torch.tensor([[LETTERS[letter] for letter in row] for row in rows], dtype=torch.int8)
    ids = torch.arange(100, 100 + kinds.numel()).view_as(kinds)
    learned = kinds >= Kind.RESPONSE
    learned[:, 0] = False  # nothing predicts the first token
    learned = learned.flatten()
    for place, letter in enumerate("".join(rows)):
        learned[place] &= letter not in weightless
    (places,) = learned.nonzero(as_tuple=True)
    samples = torch.arange(len(rows), dtype=torch.int32)[:, None].expand_as(kinds)
    return ids, kinds, samples, Targets(places - 1, ids.flatten()[places], torch.ones(len(places)))


@pytest.mark.parametrize(
    ("rows", "weightless", "expected"),
    [
        (["siusrrrr"], "", ["----xxx-"]),
        (["siusrrrrsuusrrs"], "", ["----xxx-----x--"]),  # two turns; neither's last token
        (["siusrberr"], "", ["----xxxx-"]),
        (["siusrberr"], "b", ["----x-xx-"]),  # not what isn't learned
        (["usrr", "rrrr"], "", ["--x-", "-xx-"]),  # a row ends an answer; its first token is no target
        (["usrpp", "usrrr"], "", ["-----", "--xx-"]),
    ],
)
def test_what_is_replaced(rows, weightless, expected):
    ids, kinds, samples, targets = case(*rows, weightless=weightless)
    predicted = torch.arange(len(targets.positions))
    before = ids.clone()
    found = replaced(ids, kinds, samples, targets, predicted, torch.ones_like(predicted, dtype=torch.bool))
    assert ["".join("-x"[one < 100] for one in row) for row in found.tolist()] == expected
    assert torch.equal(ids, before)
    for place, token in enumerate(found.flatten().tolist()):
        if token < 100:  # each prediction stands in its own place
            assert targets.positions[token] == place - 1
        else:
            assert token == 100 + place


def test_only_what_is_chosen_is_replaced():
    ids, kinds, samples, targets = case("usrrrrrr")
    chosen = torch.tensor([True, False, False, True, False, True])
    found = replaced(ids, kinds, samples, targets, torch.arange(6), chosen)
    assert found.tolist() == [[100, 101, 0, 103, 104, 3, 106, 107]]


@pytest.mark.parametrize("other", ["rr", "ru", "ss"])
def test_in_a_row_of_several_samples_an_answer_ends_with_its_sample(other):
    """Whatever the next sample begins with: as padded."""
    ids, kinds, _, targets = case(f"usrrr{other}")
    samples = torch.tensor([[0] * 5 + [1] * 2])
    learned = targets.positions != 4  # nothing predicts the first token of a sample
    targets = Targets(targets.positions[learned], targets.labels[learned], targets.weights[learned])
    predicted = torch.arange(len(targets.positions))
    found = replaced(ids, kinds, samples, targets, predicted, torch.ones_like(predicted, dtype=torch.bool))
    assert found.tolist() == [[100, 101, 0, 1, 104, 105, 106]]
