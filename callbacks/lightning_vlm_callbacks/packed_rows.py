"""Samples that share a row of a batch, for what measures each sample alone."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["PacksSamples", "packed_lengths"]


@runtime_checkable
class PacksSamples(Protocol):
    """A batch whose samples may lie one after the other in one row, of shape [1, length, ...] in the model.

    To callbacks a row is a sample, unless the batch says otherwise in this way.
    """

    @property
    def packed_lengths(self) -> Sequence[int] | None:
        """The tokens of each sample of the row, numbers of the host; None where each has a row of its own."""


def packed_lengths(batch: Any) -> Sequence[int] | None:
    """The tokens of each sample of a batch with one row for all; None for any other batch.

    >>> packed_lengths({"input_ids": [[1, 2, 3]]}) is None
    True
    """
    return batch.packed_lengths if isinstance(batch, PacksSamples) else None
