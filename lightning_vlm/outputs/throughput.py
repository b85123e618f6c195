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
from transformers import PreTrainedModel

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.models.packing import why_not_packed

MUCH_PADDING = 0.1
"""From this share of the tokens on, padding is worth a word."""


def throughput_of(trainer: Trainer) -> Summary | None:
    """The summary of a fit, if it was measured and is known."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ThroughputMonitor):
            return callback.summary
    return None


def advice_on_speed(
    summary: Summary, data: VLMDataModule, model: PreTrainedModel | None = None, processes: int = 1
) -> Iterator[str]:
    """What in the config would make the fit faster; nothing where nothing stands out.

    Args:
        summary: Of the fit.
        data: Its data.
        model: What was trained; None could be packed.
        processes: Processes that trained on this machine, and shared its cores.
    """
    waiting = summary.figures.get("waiting_share", 0.0)
    if waiting >= MUCH_WAITING:
        yield advice_on_waiting(waiting, data.num_workers, usable_cores(processes), "data.num_workers")
    padding = summary.figures.get("padding_share", 0.0)
    better = _with_less_padding(data, model)
    if padding >= MUCH_PADDING and better:
        yield (
            f"{padding:.0%} of the tokens computed are padding: data.batching {better} "
            f"(with data.max_tokens), for at most {1 / (1 - padding):.2g} times the speed"
        )


def _with_less_padding(data: VLMDataModule, model: PreTrainedModel | None) -> str:
    """The better mode of batches that the model and the draws allow, and what it does; empty if none."""
    if data.sampling and (data.sampling.by_loss or data.sampling.grouped):
        return ""  # these need padded batches
    if model is None or why_not_packed(model) is None:
        return "" if data.batching.packs else "packed leaves them out"
    return "" if data.batching.by_tokens else "tokens leaves most of them out"
