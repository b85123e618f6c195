"""How much memory there is, and the most that a step takes of it: of a GPU, or of this machine."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm.errors import UserError
from lightning_vlm.host_memory import available_memory

MARGIN = 0.1
"""The share of all memory that stays free: for fragments, libraries, and what callbacks do in a step."""
_DEVICE = torch.ops.prim.device.default
_CPU = torch.device("cpu")


class Meter:
    """What a step takes, beyond what is there all the time.

    Args:
        whole: The bytes that this process may use, those that it uses already included.
        held: The bytes that are there all the time in training, from before its first step on.

    Raises:
        torch.OutOfMemoryError: None are left for a step.
    """

    def __init__(self, whole: int, held: int) -> None:
        self.whole = whole
        self.held = held
        if self.room <= 0:
            raise torch.OutOfMemoryError(f"{held:,} bytes are always in use, of {whole:,}")

    @property
    def room(self) -> int:
        """The bytes that a step may take."""
        return int(self.whole * (1 - MARGIN)) - self.held

    def peak(self, step: Callable[[], None]) -> int:
        """The most bytes that a step takes at once.

        Raises:
            torch.OutOfMemoryError: There aren't as many.
        """
        raise NotImplementedError

    def clean(self) -> None:
        """Give back what a step has left, after one that failed too."""
        gc.collect()


class CPUMeter(Meter):
    """Counts the bytes of all tensors that a step makes. It never uses more than there is: a step that would
    is stopped, so that the machine doesn't begin to swap.

    What an operation needs for itself isn't seen.

    Args:
        coming: The bytes that training will hold besides what is there now.
        whole: In place of the memory that is free; pretended, or a share of it.
    """

    def __init__(self, coming: int, whole: int | None = None) -> None:
        super().__init__(available_memory() if whole is None else whole, coming)

    def peak(self, step: Callable[[], None]) -> int:
        counter = AllocationCounter(self.whole - self.held)
        with counter:
            step()
        return counter.peak


class CUDAMeter(Meter):
    """Asks the allocator of a GPU.

    What training will hold besides what is there now is allocated for as long as the meter is in use, so that
    a step that fits here fits there.

    Args:
        coming: How many bytes that is.
        device: The GPU.
        whole: In place of what is free; at most that much.
    """

    def __init__(self, coming: int, device: torch.device, whole: int | None = None) -> None:
        self._device = device
        self.clean()
        now = torch.cuda.memory_allocated(device)
        free, _ = torch.cuda.mem_get_info(device)
        there_is = free + torch.cuda.memory_reserved(device)
        super().__init__(there_is if whole is None else min(whole, there_is), now + coming)
        self._ballast: list[Tensor] = []
        for begin in range(0, coming, 2**28):
            size = min(2**28, coming - begin)
            self._ballast.append(torch.empty(size, dtype=torch.uint8, device=device))

    def peak(self, step: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        step()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def clean(self) -> None:
        super().clean()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def close(self) -> None:
        """Free what was only held."""
        self._ballast = []
        self.clean()


@contextmanager
def meter_of(
    device: torch.device, coming: int, whole: int | None = None, processes: int = 1
) -> Iterator[Meter]:
    """The meter of a device.

    Args:
        device: Where training runs.
        coming: The bytes that training will hold besides what is there now.
        whole: The bytes that may be used, in place of those that are free.
        processes: How many share the memory of this machine, where it is a CPU.

    Raises:
        UserError: A kind of device whose memory can't be asked for.
        torch.OutOfMemoryError: Not even what training will hold fits.
    """
    if device.type == "cpu":
        yield CPUMeter(coming, available_memory() // processes if whole is None else whole)
    elif device.type == "cuda":
        meter = CUDAMeter(coming, device, whole)
        try:
            yield meter
        finally:
            meter.close()
    else:
        raise UserError(
            f"auto: the memory of {device.type} can't be measured; give data.max_tokens and "
            "model.gradient_checkpointing"
        )


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the tensors on a CPU that come into being while it is on, and are alive at once.

    Args:
        limit: So many may be alive.

    >>> with AllocationCounter(10_000) as counter:
    ...     for _ in range(3):
    ...         x = torch.zeros(100) + 1  # both are alive for a moment
    >>> counter.peak
    1200
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.peak = 0
        """The most bytes that were alive at once."""
        self.live = 0
        """Those that are alive now."""
        self._limit = limit
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:  # takes no memory, and tensors without values are asked for it all the time
            return _CPU
        kwargs = kwargs or {}
        for value in tensors_in((args, kwargs)):
            self._see(value, 0)
        result = func(*args, **kwargs)
        for value in tensors_in(result):
            self._see(value, value.untyped_storage().nbytes())
        if self.live > self._limit:
            raise torch.OutOfMemoryError(f"{self.live:,} bytes are in use, and {self._limit:,} are there")
        return result

    def _see(self, tensor: Tensor, size: int) -> None:
        """Count the memory of a tensor unless it is known.

        Args:
            tensor: What an operation was given, or gave.
            size: Its bytes; 0 if it was there before.
        """
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: weakref.ref) -> None:
        self.live -= size
        del self._seen[key]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what an operation is given or gives; faster than torch's pytree.

    >>> [tensor.item() for tensor in tensors_in(([torch.tensor(1), 2], {"other": torch.tensor(3)}))]
    [1, 3]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
