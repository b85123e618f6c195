"""A run's throughput in a few lines for people, and what would make it faster."""

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from lightning_vlm_callbacks.throughput_monitor.ledger import Totals

__all__ = ["MUCH_WAITING", "Summary", "advice_on_waiting", "summarize", "usable_cores", "workers_needed"]

MUCH_WAITING = 0.1
"""From this share of the time on, waiting for data is worth a word."""
_NOT_COUNTED = {
    "warm-up": "warm-up",
    "compiling": "compiling",
    "validation": "validation",
    "saving": "checkpoints",
}
"""What time is spent on that isn't training, and its name for people."""


class Summary(NamedTuple):
    """The throughput of a fit.

    Args:
        figures: As logged, without their prefix, over the whole fit.
        lines: The same in words, for a terminal.
        advice: What would make it faster; empty if nothing stands out.
    """

    figures: dict[str, float]
    lines: list[str]
    advice: list[str]


def summarize(
    totals: Totals,
    figures: Mapping[str, float],
    why_no_mfu: str,
    workers: int | None,
    processes: int = 1,
) -> Summary:
    """Say what a fit came to.

    Args:
        totals: Its sums.
        figures: What they come to; with `memory_gib`, if that is known.
        why_no_mfu: The reason if there is no MFU.
        workers: Processes that make training batches; None if that isn't known.
        processes: Processes that train on this machine, and share its cores.
    """
    lines = [_rates(figures), _use(figures, why_no_mfu)]
    shares = _shares(figures)
    not_counted = _not_counted(totals)
    lines += [line for line in (shares, not_counted) if line]
    advice = []
    share = figures.get("waiting_share", 0.0)
    if share >= MUCH_WAITING:
        advice.append(advice_on_waiting(share, workers, usable_cores(processes)))
    return Summary(dict(figures), [line for line in lines if line], advice)


def workers_needed(share: float, workers: int) -> int:
    """Loader processes that would keep up, if each makes batches as fast as those now do.

    Args:
        share: Of the time that is spent waiting for data.
        workers: Processes now; with 0 the main process makes the batches itself.

    >>> workers_needed(0.5, 2), workers_needed(0.2, 0), workers_needed(0.75, 0)
    (4, 1, 3)
    """
    share = min(share, 0.99)
    if workers == 0:
        return max(1, math.ceil(round(share / (1 - share), 6)))
    return math.ceil(round(workers / (1 - share), 6))


def advice_on_waiting(share: float, workers: int | None, cores: int, option: str = "num_workers") -> str:
    """What to change if much time is spent waiting for data.

    >>> advice_on_waiting(0.5, 2, 16)
    'the data is the bottleneck (50% of the time is spent waiting for it): set num_workers to 4 (now 2)'
    """
    start = f"the data is the bottleneck ({share:.0%} of the time is spent waiting for it): "
    if workers is None:
        return f"{start}give the loader more worker processes, or less to do for each sample"
    needed = workers_needed(share, workers)
    if needed <= cores:
        return f"{start}set {option} to {needed} (now {workers})"
    if workers < cores:
        return (
            f"{start}set {option} to {cores} (now {workers}); there are no more cores for it, and it would "
            f"take {needed}, so make samples cheaper too: smaller pictures, or prepared once and kept on disk"
        )
    return (
        f"{start}its {workers} workers have all cores there are for it, and it would take {needed}; "
        "make samples cheaper: smaller pictures, or prepared once and kept on disk"
    )


def _rates(figures: Mapping[str, float]) -> str:
    if "step_seconds" not in figures:
        return "nothing was measured: all of its steps were warm-up, or compiled code"
    parts = []
    if "samples_per_second" in figures:
        parts.append(f"{_number(figures['samples_per_second'])} samples")
    if "tokens_per_second" in figures:
        parts.append(f"{_number(figures['tokens_per_second'])} tokens")
    if "learned_tokens_per_second" in figures:
        parts.append(f"{_number(figures['learned_tokens_per_second'])} learned tokens")
    rates = f"{', '.join(parts)} per second; " if parts else ""
    return f"{rates}{_number(figures['step_seconds'])} s a step"


def _use(figures: Mapping[str, float], why_no_mfu: str) -> str:
    if "step_seconds" not in figures:
        return ""
    speed = figures.get("tflops_per_device")
    shown = "" if speed is None else f"{_operations(speed)} a device"
    if "mfu" in figures:
        return f"{shown}, {figures['mfu']:.1%} of its peak (MFU)"
    return f"{shown}; no MFU: {why_no_mfu}" if shown else f"no MFU: {why_no_mfu}"


def _shares(figures: Mapping[str, float]) -> str:
    parts = []
    if "waiting_share" in figures:
        parts.append(f"waiting for data {figures['waiting_share']:.1%}")
    if "padding_share" in figures:
        parts.append(f"padding {figures['padding_share']:.1%}")
    if "memory_gib" in figures:
        parts.append(f"memory {figures['memory_gib']:.1f} GiB at most")
    return ", ".join(parts)


def _not_counted(totals: Totals) -> str:
    parts = []
    for what, name in _NOT_COUNTED.items():
        seconds = totals.spent(what)
        if seconds >= 0.05:
            parts.append(f"{name} {seconds:,.1f} s")
    return f"not counted: {', '.join(parts)}" if parts else ""


def _operations(tflops: float) -> str:
    """
    >>> _operations(412.3), _operations(0.00512)
    ('412 TFLOP/s', '5.12 GFLOP/s')
    """
    return f"{_number(tflops)} TFLOP/s" if tflops >= 0.1 else f"{_number(tflops * 1000)} GFLOP/s"


def _number(value: float) -> str:
    """With three digits that count.

    >>> _number(1234.5), _number(12.345), _number(0.01234)
    ('1,234', '12.3', '0.0123')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def usable_cores(processes: int = 1) -> int:
    """Processor cores that this process may use.

    Args:
        processes: So many share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)
