"""A classifier with a trap, and batches that spring it."""

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.support.nonfinite import MARK, Trap


@pytest.fixture(scope="module")
def trapped(digits):
    """A classifier with a trap in its second block, and AdamW or another optimizer."""

    class Trapped(digits.Classifier):
        def forward(self, pictures):
            for one in self.modules():
                if isinstance(one, Trap):
                    one.marked = bool((pictures == MARK).any())
            return super().forward(pictures)

    def make(kind="forward", **options):
        seed_everything(0, verbose=False)
        made = Trapped(**{"dropout": 0.0, **options})
        made.blocks[1].drop = Trap(kind)
        return made

    return make


@pytest.fixture(scope="module")
def batches_of(digits):
    """Micro-batches of 4 digits; those named are marked."""

    def make(count, marked=(), mark=MARK):
        pictures, labels = (torch.stack(one) for one in zip(*digits.Digits().train, strict=True))
        made = [
            [pictures[i * 4 : i * 4 + 4].clone(), labels[i * 4 : i * 4 + 4].clone()] for i in range(count)
        ]
        for one in marked:
            made[one][0][0, 0, 0, 0] = mark
        return made

    return make
