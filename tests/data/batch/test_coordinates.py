"""Coordinates keep their tokens and their exact numbers through a batch."""

import copy
import math

import pytest
import torch

from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.batch.coordinates import Coordinates, NumberToken
from tests.data.batch.test_collate import SAMPLES

TARGETS = [(0.1, 0.2, 1 / 3, 0.7), (0.123456, 0.654321)]


@pytest.fixture
def examples(renderer_of):
    """Three samples. In the first a box and a point have tokens, in the second nothing has any, in the third
    one box; as if their second, third, ... tokens were numbers."""
    made = [copy.copy(renderer_of("shipped").example(sample)) for sample in SAMPLES]
    tokens = [NumberToken(1, 0, 0, 0.1, 1), NumberToken(3, 0, 3, 0.01, 1), NumberToken(4, 1, 1, 0.001, 3)]
    made[0].coordinates = Coordinates.of(tokens, TARGETS)
    made[2].coordinates = Coordinates.of([NumberToken(2, 0, 2, 1 / 1024, 0)], [(0.0, 0.0, 1.0, 1.0)], 5)
    return made


@pytest.mark.parametrize("pack", [False, True])
def test_in_a_batch_they_are_of_the_same_tokens(examples, pack):
    batch = collate([Item(example, None, None) for example in examples], 0, [], [], pack)
    found = batch.coordinates
    ids = batch.inputs["input_ids"].flatten()[found.positions]
    expected = [examples[0].input_ids[[1, 3, 4]], examples[2].input_ids[[2]]]
    assert torch.equal(ids, torch.cat(expected))
    assert batch.samples.flatten()[found.positions].tolist() == [0, 0, 0, 2]
    assert found.item.tolist() == [0, 0, 1, 2]
    assert found.axis.tolist() == [0, 3, 1, 2]
    assert found.digits.tolist() == [1, 1, 3, 0]
    assert found.worth.tolist() == torch.tensor([0.1, 0.01, 0.001, 1 / 1024]).tolist()
    assert torch.equal(found.targets[1, :2], torch.tensor(TARGETS[1]))
    assert found.targets[1, 2:].isnan().all()
    assert not found.targets[[0, 2]].isnan().any()
    assert found.left_out == 5


def test_without_any_there_are_none(examples):
    assert collate([Item(examples[1], None, None)], 0, [], []).coordinates is None
    assert collate([], 0, [], []).coordinates is None


def test_none_may_have_been_left():
    none = Coordinates.of([], [], left_out=2)
    assert [len(column) for column in none[:6]] == [0] * 6
    assert (none.targets.shape, none.left_out) == ((0, 4), 2)


def test_they_stay_exact_where_floats_are_rounded(examples):
    from lightning.pytorch.plugins.precision import HalfPrecision

    batch = collate([Item(examples[0], None, None)], 0, [], [])
    rounded = HalfPrecision("bf16-true").convert_input(batch).coordinates
    assert torch.equal(rounded.targets[0], torch.tensor(TARGETS[0]))
    assert math.isclose(rounded.worth[2], 0.001, rel_tol=1e-6)
