"""Reads tensors of a step later than they are computed, so that the host doesn't wait for the device."""

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """A copy of a tensor on the host, which begins at once and is waited for only when it is read.

    Read it a step later: by then the copy has arrived, while the host could already queue the next step.

    Args:
        tensor: On any device. Changes made to it afterwards don't show in the copy.

    >>> losses = torch.tensor([0.5, 0.25])
    >>> copy = HostCopy(losses)
    >>> losses.zero_()
    tensor([0., 0.])
    >>> copy.read()
    tensor([0.5000, 0.2500])
    """

    def __init__(self, tensor: Tensor) -> None:
        # A copy that doesn't block needs pinned memory, which torch then takes.
        self._copy = tensor.detach().to("cpu", non_blocking=tensor.is_cuda, copy=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.current_stream(tensor.device).record_event()

    def read(self) -> Tensor:
        """The values, on the CPU. It waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copy
