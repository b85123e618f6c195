"""Which samples are worth labelling, by hand and with what a model writes; questions of yes and no."""

import json
import math

import pytest
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.labelling import worth_labelling
from lightning_vlm.metrics.yes_no import accuracy, f1, false_yes, says_yes, yes_no_counts, yes_share


def row(source, *candidates, **more):
    texts = [{"text": text, "log_prob": log_prob, "length": length} for text, log_prob, length in candidates]
    return {"source": source, "task": "vqa", "candidates": texts, **more}


ROWS = [
    row("sure", ("red", -0.1, 2), ("blue", -9.0, 2)),
    row("torn", ("red", -0.7, 2), ("blue", -0.8, 2)),
    row("long", ("a b c d", -4.0, 8), ("a b c e", -4.1, 8)),
    row("one", ("red", -3.0, 1)),
    row("none"),
    row("infinite", ("red", None, 1), ("blue", None, 1)),
]


def test_by_disagreement():
    found = worth_labelling(ROWS, 9, by="disagreement")
    assert [worth.source for worth in found] == ["torn", "long", "sure"]
    one = 1 / (1 + math.exp(-0.1))
    assert [worth.value for worth in found[:2]] == pytest.approx(
        [2 * one * (1 - one), 0.25 * 2 * one * (1 - one)]
    )
    assert found[2].value < 0.001
    assert found[1].reason == "2 different answers among 2: 'a b c d', 'a b c e'"


def test_disagreement_is_between_what_is_likely():
    likely = row("likely", ("x", -1.0, 1), ("x", -1.0, 1), ("y", -30.0, 1))
    torn = row("torn", ("x", -1.0, 1), ("x", -1.0, 1), ("y", -1.0, 1))
    first, second = worth_labelling([likely, torn], 2)
    assert (first.source, second.source) == ("torn", "likely")
    assert first.value == pytest.approx(4 / 9)
    assert second.value == pytest.approx(math.exp(-29), rel=1e-6)


def test_by_loss():
    found = worth_labelling(ROWS, 3, by="loss")
    assert [(worth.source, worth.value) for worth in found] == [("one", 3.0), ("long", 0.5), ("torn", 0.35)]
    assert found[0].reason == "3.00 nats a token for its own answer 'red'"


def test_by_visual_gain():
    rows = [row("looks", visual_gain=2.0), row("blind", visual_gain=0.01), row("unknown", visual_gain=None)]
    found = worth_labelling(rows, 9, by="visual_gain")
    assert [worth.source for worth in found] == ["blind", "looks"]
    assert "by 0.01 nats" in found[0].reason


def test_from_a_file(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in ROWS))
    assert worth_labelling(file, 2) == worth_labelling(ROWS, 2)
    file.write_text("[1]\n")
    with pytest.raises(UserError, match="a line that isn't an object"):
        worth_labelling(file, 2)
    with pytest.raises(UserError, match="found no file of answers"):
        worth_labelling(tmp_path / "none.jsonl", 2)


def test_what_cannot_be_ranked_is_said():
    with pytest.raises(UserError, match="by loss: found no row with several candidates"):
        worth_labelling([row("a")], 2, by="loss")
    with pytest.raises(UserError, match="found 'luck'; expected one of loss, disagreement, visual_gain"):
        worth_labelling(ROWS, 2, by="luck")


def test_yes_and_no_against_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    said, right = torch.randint(2, (2, 50), generator=generator)
    words = ["No, there isn't.", "Yes."]
    sums = {}
    for answer, reference in zip(said.tolist(), right.tolist(), strict=True):
        for name, value in yes_no_counts(words[answer], ["no", "yes"][reference]).items():
            sums[name] = sums.get(name, 0.0) + value
    assert accuracy(sums) == pytest.approx(float(BinaryAccuracy()(said, right)))
    assert f1(sums) == pytest.approx(float(BinaryF1Score()(said, right)))
    assert yes_share(sums) == pytest.approx(float(said.double().mean()))
    assert false_yes(sums) == pytest.approx(float(said[right == 0].double().mean()))


def test_who_says_neither_is_wrong_and_not_a_yes():
    counts = yes_no_counts("A dog. Yes.", "yes")
    assert (counts["right"], counts["yes"], counts["should_yes"]) == (0.0, 0.0, 1.0)
    assert yes_no_counts("yes", "a dog") is None
    assert says_yes("Nothing knows yesterday") is None
