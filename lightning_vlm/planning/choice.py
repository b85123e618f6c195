"""What a plan decides."""

import math
from dataclasses import dataclass
from typing import Any

GLOBAL_BATCH = 32
"""Samples of an optimizer step, over all micro-batches, unless somebody wishes for another number."""
ENOUGH_TOKENS = 4096
"""Micro-batches from here on keep a GPU busy; with half of it, recomputing costs more than it gives."""
LEARNING_RATES = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4, "projector": 1e-3, "adapter": 2e-4}
"""Where to begin, for steps of `GLOBAL_BATCH` samples: habits of published recipes (LLaVA-1.5, QLoRA), not
laws."""


@dataclass(frozen=True)
class Choice:
    """A method, a batch and a precision that fit.

    Args:
        adapt: For `model.adapt`: a plan, or the name of a ready one.
        quantization: For `model.quantization`; None if nothing is quantised.
        batch_size: For `data.batch_size`.
        accumulate: For `trainer.accumulate_grad_batches`.
        recompute: For `model.gradient_checkpointing`.
        precision: For `trainer.precision`.
        learning_rate: For the optimizer's `lr`.
        gib: The expected peak of memory, in GiB.
        fits: Whether that is no more than there is. If not, this is what needs least.
        reasons: Why, a line each, for people.
    """

    adapt: str | dict[str, Any]
    quantization: str | None
    batch_size: int
    accumulate: int
    recompute: bool
    precision: str
    learning_rate: float
    gib: float
    fits: bool
    reasons: tuple[str, ...]


def micro_batches(wished: int, most: int) -> tuple[int, int]:
    """The samples of a micro-batch and how many of these make a step, nearest to a number of samples.

    There are as few micro-batches as can be, all of one size.

    >>> micro_batches(32, 2), micro_batches(32, 20), micro_batches(3, 8)
    ((2, 16), (16, 2), (3, 1))
    """
    accumulate = max(1, math.ceil(wished / most))
    return max(1, round(wished / accumulate)), accumulate


def scaled_learning_rate(rate: float, batch: int, base: int = GLOBAL_BATCH) -> float:
    """A learning rate for steps of another number of samples, by the square-root rule for Adam.

    It is about the samples of a whole step: accumulation that keeps them changes nothing
    (Malladi et al. 2022, https://arxiv.org/abs/2205.10287; for SGD the rule is linear, Goyal et al. 2017).

    >>> scaled_learning_rate(2e-4, 32), scaled_learning_rate(2e-4, 8)
    (0.0002, 0.0001)
    """
    return float(f"{rate * math.sqrt(batch / base):.3g}")
