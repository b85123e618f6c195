"""The states of optimizers that can't be run without values: those of bitsandbytes."""

import re
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

_STATES = {"AdamW": 2, "Adam": 2, "LAMB": 2, "AdEMAMix": 3}
"""Numbers kept for each weight; all others of bitsandbytes keep one."""
_LEAST_8BIT = 4096
"""Tensors with fewer weights are kept in 32 bits."""
_BLOCK = 256


def is_of_bitsandbytes(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of bitsandbytes."""
    return type(optimizer).__module__.partition(".")[0] == "bitsandbytes"


def bitsandbytes_states(name: str, weights: Sequence[nn.Parameter]) -> int:
    """The bytes of the states of an optimizer of bitsandbytes.

    Args:
        name: Of its class, such as `PagedAdamW8bit`. Paged states are the same, but may leave the GPU.
        weights: What it trains.

    >>> import torch
    >>> weight = nn.Parameter(torch.empty(4096, 4096, device="meta"))
    >>> bitsandbytes_states("AdamW8bit", [weight]) / weight.numel()
    2.03125
    >>> bitsandbytes_states("PagedAdamW32bit", [weight]) / weight.numel()
    8.0
    """
    family = re.sub(r"^Paged|(8|32)bit$", "", name)
    states = _STATES.get(family, 1)
    is_8bit = name.endswith("8bit")
    total = 0
    for weight in weights:
        count = weight.numel()
        in_8bit = is_8bit and count >= _LEAST_8BIT
        total += states * (count + 4 * -(-count // _BLOCK) if in_8bit else 4 * count)
    return total
