"""What a fit's throughput came to, and what in the config would make it faster."""

from collections.abc import Iterator

from lightning.pytorch import Trainer
from lightning_vlm_callbacks import ThroughputMonitor
from lightning_vlm_callbacks.throughput_monitor.summary import (
    MUCH_WAITING,
    Summary,
    advice_on_waiting,
    usable_cores,
)

from lightning_vlm.data.datamodule import VLMDataModule

MUCH_PADDING = 0.1
"""From this share of the tokens on, padding is worth a word."""


def throughput_of(trainer: Trainer) -> Summary | None:
    """The summary of a fit, if it was measured and is known."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ThroughputMonitor):
            return callback.summary
    return None


def advice_on_speed(summary: Summary, data: VLMDataModule) -> Iterator[str]:
    """What in the config would make the fit faster; nothing where nothing stands out.

    Args:
        summary: Of the fit.
        data: Its data.
    """
    waiting = summary.figures.get("waiting_share", 0.0)
    if waiting >= MUCH_WAITING:
        yield advice_on_waiting(waiting, data.num_workers, usable_cores(), "data.num_workers")
    padding = summary.figures.get("padding_share", 0.0)
    if padding >= MUCH_PADDING and not data.batching.packs:
        yield (
            f"{padding:.0%} of the tokens computed are padding: data.batching packed leaves them out "
            f"(with data.max_tokens), for "
            f"at most {1 / (1 - padding):.2g} times the speed"
        )
