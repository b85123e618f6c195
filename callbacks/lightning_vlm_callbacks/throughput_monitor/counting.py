"""How a batch is counted: samples, tokens, operations. A module or a user may say it better."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import LightningModule
from torch import Tensor

__all__ = ["BatchCounter", "Counts", "OffersBatchCounter", "counter_of"]


class Counts(NamedTuple):
    """What is in a batch of one process. None is unknown, and what follows from it is unknown too.

    Args:
        samples: How many samples.
        tokens: Tokens that the model computes and that belong to a sample: no padding.
        learned: Those of them that have a loss.
        padding: Tokens that are computed all the same, and belong to no sample.
    """

    samples: int | None
    tokens: int | None = None
    learned: int | None = None
    padding: int | None = None


class BatchCounter:
    """Counts batches by the first dimension of their first tensor. Subclass it for what your batches hold.

    It is asked for every training batch when the batch is on its device, so it must read shapes and numbers
    of the host only: to read a tensor's values would make the host wait for the device.

    Example::

        class Tokens(BatchCounter):
            def count(self, batch):
                return Counts(samples=len(batch["ids"]), tokens=batch["length"])

            def operations(self, batch):
                return 6 * 125e6 * batch["length"]
    """

    def count(self, batch: Any) -> Counts:
        """Count the samples and tokens of a batch.

        >>> import torch
        >>> BatchCounter().count({"name": "a", "x": torch.zeros(4, 8)})
        Counts(samples=4, tokens=None, learned=None, padding=None)
        """
        tensor = _first_tensor(batch)
        return Counts(None if tensor is None else tensor.shape[0])

    def operations(self, batch: Any) -> float | None:
        """Floating point operations of forward and backward for a batch, None if they can't be counted.

        What the model needs is counted: no padding, and nothing that is computed a second time.
        """
        return None

    @property
    def no_operations(self) -> str:
        """Why `operations` is None, in a few words."""
        return "nothing counts operations; give a counter, or the module a batch_counter()"


@runtime_checkable
class OffersBatchCounter(Protocol):
    """A module that says how its batches are counted."""

    def batch_counter(self) -> BatchCounter:
        """Called when training starts, with the model in place."""


def counter_of(module: LightningModule, given: BatchCounter | None) -> BatchCounter:
    """The counter that the user gives, or the module's, or the default."""
    if given is not None:
        return given
    if isinstance(module, OffersBatchCounter):
        return module.batch_counter()
    return BatchCounter()


def _first_tensor(batch: Any) -> Tensor | None:
    """The first tensor with a dimension, in nested dictionaries and sequences."""
    if isinstance(batch, Tensor):
        return batch if batch.ndim else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for entry in batch:
            found = _first_tensor(entry)
            if found is not None:
                return found
    return None
