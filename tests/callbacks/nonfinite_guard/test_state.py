"""Buffers are as they were before a step."""

import pytest
import torch
from lightning_vlm_callbacks.nonfinite_guard.state import KeptBuffers
from torch import nn

from tests.support.nonfinite import assert_same, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


def test_buffers():
    """BatchNorm's (whose version doesn't tell), replaced ones, large ones that change late or never."""
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "other": nn.Module()})
    large = torch.zeros(2**16 + 1)
    module["other"].register_buffer("large", large)
    module["other"].register_buffer("constant", large.clone())
    module["other"].register_buffer("replaced", torch.zeros(2))
    kept = KeptBuffers(module)
    kept.keep()
    for step in range(4):
        expected = state_of(module)
        module["norm"](torch.randn(4, 3))
        module["other"].replaced = module["other"].replaced + 1
        if step != 1:
            module["other"].large += 1
        kept.restore()
        assert_same(state_of(module), expected)
        module["norm"](torch.randn(4, 3))
        module["other"].replaced = module["other"].replaced + 1
        module["other"].large += 1
        kept.keep()
    assert [one.copied is None for one in kept._buffers] == [False, False, False, False, True, False]
