"""Numbers of a config that follow from the data: steps, epochs, lengths."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_FEW, _MANY = 1_000, 20_000
_STEPS_OF_AN_EPOCH = 5
"""At least so many steps an epoch has, as far as the data allows."""


class Epochs(NamedTuple):
    """How long training goes, and why."""

    number: int
    patience: int
    why: str


def epochs_for(size: int) -> Epochs:
    """How often the data is seen.

    Args:
        size: Samples to learn from.

    >>> epochs_for(30).number, epochs_for(5000).number, epochs_for(100_000).number
    (10, 3, 1)
    """
    if size < _FEW:
        return Epochs(10, 3, f"few samples ({size:,}); the early stop ends it sooner")
    if size < _MANY:
        return Epochs(3, 2, "usual for some thousands of samples")
    return Epochs(1, 3, "so much data is rarely worth a second pass")


def samples_per_step(size: int) -> int:
    """The samples of an optimizer step: 32, fewer of little data.

    >>> samples_per_step(24), samples_per_step(100), samples_per_step(10_000)
    (4, 16, 32)
    """
    wished = max(1, size // _STEPS_OF_AN_EPOCH)
    return min(32, 1 << (wished.bit_length() - 1))


def answer_room(answers: Sequence[int]) -> int:
    """For `generation.max_new_tokens`: a quarter more than the longest answer, in eights.

    >>> answer_room([3, 5]), answer_room([100])
    (8, 128)
    """
    return min(2048, 8 * math.ceil(max(1, 1.25 * max(answers)) / 8))


def length_limit(lengths: Sequence[int], context: int | None) -> int:
    """For `data.max_length`: a quarter more than the longest sample, in 64s, within what the model takes.

    >>> length_limit([100, 130], None), length_limit([4000], 4096)
    (192, 4096)
    """
    limit = 64 * math.ceil(1.25 * max(lengths) / 64)
    return limit if context is None else min(limit, max(context, max(lengths)))
