import math
import re

import jsonargparse
import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights, WeightCurve, token_weights

SEED = {"special": 0.0, "instruction": 0.0, "response": 1.0, "box": 2.0, "entity": 1.5}


def test_the_defaults_are_the_seeds():
    assert vars(KindWeights()) == SEED


def test_every_kind_has_its_own_weight():
    """One token at a time, against the names of the kinds; image and padding never count."""
    table = KindWeights(special=1.0, instruction=2.0, response=3.0, box=4.0, entity=5.0)
    kinds = torch.tensor([list(Kind)], dtype=torch.int8)
    (weights,) = token_weights(kinds, table, torch.ones(1, 1)).tolist()
    assert len(Kind) == 7
    for kind, weight in zip(Kind, weights, strict=True):
        assert weight == vars(table).get(kind.name.lower(), 0.0), kind
    assert {kind for kind, weight in zip(Kind, weights, strict=True) if weight == 0} == {Kind.PAD, Kind.IMAGE}


def test_samples_multiply():
    kinds = torch.randint(0, len(Kind), (5, 33), dtype=torch.int8)
    before = kinds.clone()
    factors = torch.tensor([0.0, 0.25, 1.0, 3.0, 1e-3], dtype=torch.float64)
    weights = token_weights(kinds, KindWeights(), factors[:, None])
    assert weights.dtype == torch.float32
    assert weights.shape == kinds.shape
    by_name = [SEED.get(kind.name.lower(), 0.0) for kind in Kind]
    for b in range(5):
        expected = [by_name[kind] * factors[b].item() for kind in kinds[b].tolist()]
        assert weights[b].tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(kinds, before)


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf, 1e38])
@pytest.mark.parametrize("name", SEED)
def test_a_weight_that_makes_no_sense_is_refused_by_name(name, bad):
    with pytest.raises(
        UserError, match=rf"token_weights\.{name}: found {re.escape(str(bad))}; expected a finite number >= 0"
    ):
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
    with pytest.raises(Exception, match=r"token_weights\.box: found -1"):
        parse("--model.weights.box=-1")


# The weights by progress

POINTS = [
    {"at": 0, "instruction": 1, "box": 4.0},
    {"at": 0.25, "instruction": 0.5},
    {"at": 0.75, "instruction": 0.0, "box": 1.0},
]
BY_HAND = {  # progress: weights of instructions and boxes
    "steps": {0: (1, 4), 0.2: (1, 4), 0.25: (0.5, 4), 0.5: (0.5, 4), 0.75: (0, 1), 1: (0, 1)},
    "linear": {0: (1, 4), 0.125: (0.75, 3.5), 0.25: (0.5, 3), 0.5: (0.25, 2), 0.75: (0, 1), 1: (0, 1)},
    "smooth": {
        0: (1, 4),
        0.125: (0.75, 4 - 3 * 0.0669873),  # (1 - cos(pi / 6)) / 2
        0.375: (0.5 - 0.5 * 0.1464466, 2.5),  # (1 - cos(pi / 4)) / 2
        0.75: (0, 1),
        1: (0, 1),
    },
}


@pytest.mark.parametrize("between", BY_HAND)
def test_weights_by_progress(between):
    curve = WeightCurve(POINTS, between)
    own = KindWeights(special=0.5, instruction=9.0, response=3.0)
    for progress, expected in {**BY_HAND[between], -1: (1, 4), 2: (0, 1)}.items():
        found = curve(progress, own)
        assert (found.instruction, found.box) == pytest.approx(expected, abs=1e-7), progress
        assert (found.special, found.response, found.entity) == (0.5, 3.0, 1.5)
        assert all(type(weight) is float for weight in vars(found).values())


@pytest.mark.parametrize("between", BY_HAND)
def test_a_point_is_reached_at_its_step_whatever_the_rounding(between):
    for total in range(1, 100):
        for step in range(1, total):
            at = round(step / total, 7)
            curve = WeightCurve([{"at": 0, "box": 1.0}, {"at": at, "box": 0.0}], between)
            assert curve(step / total, KindWeights()).box == 0
            assert curve((step - 1) / total, KindWeights()).box > 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "points: found none"),
        ([{"at": 0}], r"points\[0\]: found .*expected at and the weight of a kind"),
        ([{"box": 1.0}], r"points\[0\]: found"),
        ([{"at": 0.1, "box": 1.0}], r"points\[0\]\.at: found 0\.1; expected 0"),
        ([{"at": 0, "boxes": 1.0}], r"points\[0\]\.boxes: there is no such kind.*did you mean box\?"),
        ([{"at": 0, "image": 1.0}], r"points\[0\]\.image: found 1\.0; pictures and padding always weigh 0"),
        ([{"at": 0, "box": -1.0}], r"points\[0\]\.box: found -1\.0; expected a finite number >= 0"),
        ([{"at": 0, "box": math.inf}], r"points\[0\]\.box: found inf"),
        ([{"at": 0, "box": 1e38}], r"points\[0\]\.box: found 1e\+38; .* at most 1,000,000"),
        ([{"at": 0, "box": "much"}], r"points\[0\]\.box: found much"),
        (
            [{"at": 0, "box": 1.0}, {"at": 50, "box": 0.0}],
            r"points\[1\]\.at: found 50; expected a fraction of training",
        ),
        ([{"at": 0, "box": 1.0}, {"at": 0, "box": 0.0}], r"points\[1\]\.at: found 0 after 0"),
        ([{"at": 0, "box": 1.0}, {"at": 0.5, "entity": 0.0}], r"points\[1\]\.entity: found no weight of"),
    ],
)
def test_points_that_make_no_sense(points, message):
    with pytest.raises(UserError, match=message):
        WeightCurve(points)


def test_a_way_between_points_that_there_is_not():
    with pytest.raises(UserError, match="between: found 'cubic'; expected steps, linear or smooth"):
        WeightCurve(POINTS, "cubic")


def test_a_point_at_which_nothing_has_weight_is_refused_beforehand():
    curve = WeightCurve([{"at": 0, "response": 1.0}, {"at": 0.5, "response": 0.0}])
    curve.check(KindWeights())
    with pytest.raises(UserError, match=r"points at 0\.5: token_weights: found 0 for every kind"):
        curve.check(KindWeights(box=0.0, entity=0.0))


def test_keys_from_python():
    assert KindWeights.read({"box": 3.0}) == KindWeights(box=3.0)
    assert KindWeights.read(None) == KindWeights()
    with pytest.raises(UserError, match="there is no kind respons; did you mean response"):
        KindWeights.read({"respons": 3.0})
