import math

import jsonargparse
import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights, token_weights

SEED = {"special": 0.0, "instruction": 0.0, "response": 1.0, "box": 2.0, "entity": 1.5}


def test_the_defaults_are_the_seeds():
    assert vars(KindWeights()) == SEED


def test_every_kind_has_its_own_weight():
    """One token at a time, against the names of the kinds; image and padding never count."""
    table = KindWeights(special=1.0, instruction=2.0, response=3.0, box=4.0, entity=5.0)
    kinds = torch.tensor([list(Kind)], dtype=torch.int8)
    (weights,) = token_weights(kinds, table, torch.ones(1)).tolist()
    assert len(Kind) == 7
    for kind, weight in zip(Kind, weights, strict=True):
        assert weight == vars(table).get(kind.name.lower(), 0.0), kind
    assert {kind for kind, weight in zip(Kind, weights, strict=True) if weight == 0} == {Kind.PAD, Kind.IMAGE}


def test_samples_multiply():
    kinds = torch.randint(0, len(Kind), (5, 33), dtype=torch.int8)
    before = kinds.clone()
    sample_weights = torch.tensor([0.0, 0.25, 1.0, 3.0, 1e-3], dtype=torch.float64)
    weights = token_weights(kinds, KindWeights(), sample_weights)
    assert weights.dtype == torch.float32
    assert weights.shape == kinds.shape
    by_name = [SEED.get(kind.name.lower(), 0.0) for kind in Kind]
    for b in range(5):
        expected = [by_name[kind] * sample_weights[b].item() for kind in kinds[b].tolist()]
        assert weights[b].tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(kinds, before)


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", SEED)
def test_a_weight_that_makes_no_sense_is_refused_by_name(name, bad):
    with pytest.raises(UserError, match=f"'{name}': found {bad}; expected a finite number >= 0"):
        KindWeights(**{name: bad})


def test_nothing_to_learn_is_refused():
    with pytest.raises(UserError, match="at least one"):
        KindWeights(**dict.fromkeys(SEED, 0.0))


class Learner:
    def __init__(self, weights: KindWeights = KindWeights()):  # noqa: B008
        self.weights = weights


def parse(*args):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Learner, "model")
    return parser.instantiate_classes(parser.parse_args(list(args))).model.weights


def test_from_the_command_line():
    assert parse() == KindWeights()
    assert parse("--model.weights.box=3", "--model.weights.instruction=0.5") == KindWeights(
        box=3.0, instruction=0.5
    )
    for args in (["--model.weights.image=1"], ["--model.weights.pad=1"], ["--model.weights.response=much"]):
        with pytest.raises((jsonargparse.ArgumentError, SystemExit)):
            parse(*args)
    with pytest.raises(Exception, match="'box': found -1"):
        parse("--model.weights.box=-1")
