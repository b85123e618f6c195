"""What is wrong with a batch's data."""

import pytest
import torch
from lightning_vlm_callbacks.nonfinite_guard.batches import check_batch
from torch import nn

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"a": {"b": torch.tensor([1.0, torch.inf, 2.0])}}, ["a.b: 1 of 3 values are NaN or infinite"]),
        (torch.tensor([torch.nan]), ["the batch: 1 of 1 values are NaN or infinite"]),
        ([torch.zeros(1, 3, 2, 2)], ["[0]: pictures [0] of 1 are one colour (0)"]),
        (
            {"x": torch.stack((torch.rand(3, 4, 4), torch.ones(3, 4, 4), torch.zeros(3, 4, 4)))},
            ["x: pictures [1, 2] of 3 are one colour (0, 1)"],
        ),
        (
            {"x": torch.full((1, 8, 8), 255, dtype=torch.uint8)},
            ["x: pictures [0] of 1 are one colour (255)"],
        ),
        ({"x": torch.rand(2, 3, 3)}, []),
        (
            {"x": torch.cat((torch.rand(1, 1, 3, 2, 2), torch.zeros(1, 1, 3, 2, 2)), 1)},
            ["x: pictures [1] of 2 are one colour (0); it may be padding"],
        ),
        (
            {"input_ids": torch.tensor([0, 9, 10])},
            ["input_ids: ids from 0 to 10; expected 0 to 9, as the vocabulary has 10 entries"],
        ),
        ({"input_ids": torch.tensor([0, 9]), "labels": torch.tensor([-100, 9])}, []),
        (
            {"input_ids": torch.tensor([0]), "labels": torch.tensor([-100, 11])},
            ["labels: labels from 11 to 11; expected 0 to 9, as the vocabulary has 10 entries"],
        ),
        ({"labels": torch.tensor([-1, 5])}, ["labels: labels from -1 to 5; expected 0 or more"]),
        ({"targets": torch.tensor([-100, -100])}, ["targets: nothing is supervised (all are -100)"]),
        ({"weights": torch.zeros(2)}, ["weights: nothing is supervised (no weight is above 0)"]),
        ({"weights": torch.zeros(0)}, ["weights: nothing is supervised (no weight is above 0)"]),
        ({"text": "words", "n": 3, "mask": torch.tensor([True])}, []),
    ],
)
def test_check_batch(batch, expected):
    assert check_batch(batch, nn.Embedding(10, 2)) == expected
