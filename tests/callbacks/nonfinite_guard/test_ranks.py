"""Both ranks of two skip what either of them finds."""

import warnings

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning_vlm_callbacks import NonFiniteGuard
from torch import nn

from tests.support.nonfinite import assert_same, loader

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


@pytest.mark.parametrize(("kind", "what"), [("forward", "the loss"), ("backward", "a gradient")])
def test_on_one_rank_of_two(trapped, batches_of, make_trainer, on_two_ranks, tmp_path, kind, what):
    """Rank 1's second micro-batch of step 1 is bad. Both skip, rank 1's report is named, and the weights are
    those of a hand-written loop over what both ranks saw."""
    data = [batches_of(16)[:8], batches_of(16, marked=[11])[8:]]
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)}

    def run():
        rank = int(__import__("os").environ["RANK"])
        module, guard = trapped(kind, **options), NonFiniteGuard(dirpath=tmp_path)
        trainer = make_trainer(
            devices=2,
            strategy="ddp",
            max_epochs=1,
            accumulate_grad_batches=2,
            use_distributed_sampler=False,
            callbacks=[guard],
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, loader(data[rank]))
        lines = [str(one.message) for one in caught if "NonFiniteGuard: step" in str(one.message)]
        return dict(module.named_parameters()), guard.skipped, lines

    (weights, skipped, lines), (others, skipped_too, nothing) = on_two_ranks(run)
    assert (skipped, skipped_too, nothing) == (1, 1, [])
    assert_same(others, weights)
    where = " on rank 1" if kind == "forward" else ""
    assert lines[0].startswith(f"NonFiniteGuard: step 1: {what} is NaN or infinite{where}; ")
    assert "blocks.1.drop (Trap)" in lines[0]
    assert "step-00000001-rank1/report.md" in lines[0]
    expected = {"step-00000001-rank1"} if kind == "forward" else {f"step-00000001-rank{r}" for r in (0, 1)}
    assert {one.name for one in tmp_path.iterdir()} == expected

    module = trapped(kind, **options)
    optimizer = module.configure_optimizers()
    for step in (0, 2, 3):
        optimizer.zero_grad()
        for micro in (2 * step, 2 * step + 1):
            for rank in range(2):
                pictures, labels = data[rank][micro]
                (nn.functional.cross_entropy(module(pictures), labels) / 4).backward()
        optimizer.step()
    for name, value in module.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_a_bad_loss_with_finite_gradients(digits, batches_of, make_trainer, on_two_ranks, tmp_path):
    """Infinite on rank 1 alone, by a constant: gradients are finite, yet both ranks leave the step out."""

    class Constant(digits.Classifier):
        def training_step(self, batch, batch_idx):
            bad = batch_idx == 1 and self.global_rank == 1
            return super().training_step(batch, batch_idx) + (torch.inf if bad else 0)

    def run():
        seed_everything(0, verbose=False)
        module, guard = Constant(dropout=0.0), NonFiniteGuard(dirpath=tmp_path)
        options = {"devices": 2, "strategy": "ddp", "max_epochs": 1, "use_distributed_sampler": False}
        make_trainer(callbacks=[guard], **options).fit(module, loader(batches_of(3)))
        return dict(module.named_parameters()), guard.skipped

    (weights, skipped), (others, skipped_too) = on_two_ranks(run)
    assert skipped == skipped_too == 1
    assert_same(others, weights)
