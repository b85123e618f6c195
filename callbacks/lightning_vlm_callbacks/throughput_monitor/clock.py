"""Moments of a run, on the host or on a device, which the host never waits for."""

import time
from typing import Any, Protocol

import torch

__all__ = ["Clock", "DeviceClock", "HostClock", "clock_of"]


class Clock(Protocol):
    """Marks moments now, and says later how far apart they were."""

    def now(self) -> Any:
        """Mark this moment."""

    def is_past(self, moment: Any) -> bool:
        """Whether a moment has come, so that it can be read at once."""

    def wait(self, moment: Any) -> None:
        """Wait until a moment has come."""

    def seconds(self, start: Any, end: Any) -> float:
        """From one moment to another, both past."""


class HostClock:
    """The time of the host, right where the host does the work itself.

    >>> clock = HostClock()
    >>> start = clock.now()
    >>> clock.is_past(start), clock.seconds(start, start)
    (True, 0.0)
    """

    def now(self) -> float:
        """Mark this moment."""
        return time.perf_counter()

    def is_past(self, moment: float) -> bool:
        """It is: the host has no other moments."""
        return True

    def wait(self, moment: float) -> None:
        """There is nothing to wait for."""

    def seconds(self, start: float, end: float) -> float:
        """From one moment to another."""
        return end - start


class DeviceClock:
    """The time of a CUDA device, by events between its kernels.

    The host queues kernels ahead, so its own time says when work was asked for, not when it was done. A
    moment here comes when the device has done all that was queued before it. So the time between the moments
    before and after the host fetches a batch is the time in which the device had nothing to do: nearly none
    while it still has work.

    Args:
        device: The CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        """Mark this place in the device's queue."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_past(self, moment: torch.cuda.Event) -> bool:
        """Whether the device has come there. The host doesn't wait."""
        return moment.query()

    def wait(self, moment: torch.cuda.Event) -> None:
        """Wait until the device has come there."""
        moment.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """From one moment to another, both past."""
        return start.elapsed_time(end) / 1000


def clock_of(device: torch.device) -> Clock:
    """The clock for a run on a device: its own on CUDA, else the host's."""
    return DeviceClock(device) if device.type == "cuda" else HostClock()
