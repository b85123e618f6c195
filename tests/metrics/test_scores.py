import math

import pytest
import torch

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.scores import Scores


def batch(tasks, lengths):
    """Samples of the given lengths, padded; what is in them doesn't matter."""
    longest = max(lengths, default=1)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths] or [[1]])
    kinds = torch.where(mask.bool(), Kind.RESPONSE, Kind.PAD).to(torch.int8)
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": mask}
    count = len(tasks)
    ones = torch.ones(mask.shape).view(torch.int32)
    samples = torch.arange(max(count, 1), dtype=torch.int32)[:, None].expand(mask.shape)
    return Batch(inputs, kinds, samples, ones, tasks, [""] * count, {}, [], [], [], sum(lengths))


def targets(positions, weights):
    return Targets(
        torch.tensor(positions, dtype=torch.int64),
        torch.zeros(len(positions), dtype=torch.int64),
        torch.tensor(weights),
    )


def test_losses_by_task_over_two_batches():
    scores = Scores()
    # Sample 0 has positions 0..3, sample 1 has 4..7.
    scores.add_losses(
        batch(["vqa", "ocr"], [4, 2]), targets([1, 2, 5], [1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 4.0])
    )
    scores.add_losses(batch(["vqa"], [4]), targets([0], [1.0]), torch.tensor([2.0]))
    assert scores.compute() == pytest.approx(
        {
            "loss": (3 + 2 + 2 + 2) / 4.5,
            "perplexity": math.exp(10 / 4),
            "supervised": 4 / 10,
            "loss/vqa": 7 / 4,
            "perplexity/vqa": math.exp(6 / 3),
            "supervised/vqa": 3 / 8,
            "loss/ocr": 4.0,
            "perplexity/ocr": math.exp(4.0),
            "supervised/ocr": 1 / 2,
        }
    )
    scores.reset()
    assert scores.compute() == {}


def test_one_task_is_not_reported_twice():
    scores = Scores()
    scores.add_losses(batch(["vqa"], [2]), targets([0], [1.0]), torch.tensor([0.0]))
    assert scores.compute() == {"loss": 0.0, "perplexity": 1.0, "supervised": 0.5}


def test_a_batch_without_samples_or_without_targets():
    scores = Scores()
    none = targets([], [])
    scores.add_losses(batch([], []), none, torch.zeros(0))
    assert scores.compute() == {}
    scores.add_losses(batch(["vqa"], [3]), none, torch.zeros(0))
    assert scores.compute() == {}
    scores.add_losses(batch(["vqa"], [3]), targets([0], [1.0]), torch.tensor([1.0]))
    assert scores.compute()["supervised"] == 1 / 6


@pytest.mark.parametrize(
    ("loss", "expected"), [(1e4, math.inf), (math.nan, math.nan), (700.0, math.exp(700))]
)
def test_perplexity_of_what_is_too_large_or_no_number(loss, expected):
    scores = Scores()
    scores.add_losses(batch(["vqa"], [2]), targets([0], [1.0]), torch.tensor([loss]))
    assert scores.compute()["perplexity"] == pytest.approx(expected, nan_ok=True)


def test_answers():
    scores = Scores()
    scores.add_answers(
        [
            Prediction("a", "vqa", "red", "red"),
            Prediction("b", "vqa", "blue circle", "blue square"),
            Prediction("c", "ocr", "cat", "cat"),
            Prediction("d", "ocr", "no reference", None),
        ]
    )
    assert scores.compute() == pytest.approx(
        {
            "exact_match": 2 / 3,
            "token_f1": 2.5 / 3,
            "exact_match/vqa": 0.5,
            "token_f1/vqa": 0.75,
            "exact_match/ocr": 1.0,
            "token_f1/ocr": 1.0,
        }
    )


def test_sums_stay_exact_beyond_float32():
    scores = Scores()
    for _ in range(3):
        scores.add_losses(batch(["vqa"], [2]), targets([0], [2.0**24 + 2]), torch.tensor([1.0]))
        scores.add_losses(batch(["vqa"], [2]), targets([0], [1.0]), torch.tensor([1.0]))
    assert scores.compute()["loss"] == 1.0
