"""What is chosen for a model and lengths."""

import pytest

from lightning_vlm.errors import UserError
from lightning_vlm.planning import choose


def test_more_memory_asks_for_less_help():
    small = choose("drawn-vlm", [200, 300], memory=2**20 * 620)
    large = choose("drawn-vlm", [200, 300], memory=2**34)
    assert large.fits
    assert (large.adapt, large.recompute, large.batch_size) == ("lora", False, 32)
    assert small.gib < large.gib
    assert large.batch_size * large.accumulate == 32


def test_no_lengths():
    with pytest.raises(UserError, match="found no lengths"):
        choose("drawn-vlm", [])
