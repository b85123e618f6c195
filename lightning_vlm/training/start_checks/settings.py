"""Warm-up, clipping, precision, and a validation for what waits for one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.training.start_checks.found import Found, number

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

LONGEST_WARMUP = 0.3
"""The largest usual share of a run."""
LARGEST_CLIP = 10.0
"""From here on a limit of the gradient's norm hardly ever cuts."""


def check_warmup(schedule: Any) -> Iterator[Found]:
    """The share of the run in which the rate grows, if a schedule says it."""
    share = getattr(schedule, "warmup", None)
    if share is None:
        return
    if share >= 1:  # as TrainerSchedule counts it
        yield Found("warm-up", f"{share:g} steps")
        return
    if share > LONGEST_WARMUP:
        text = f"{share:.0%} of the run, which is long; 0.03 to 0.1 are usual (model.schedule.warmup)"
        yield Found("warm-up", text, is_fine=False)
    else:
        yield Found("warm-up", f"{share:.0%} of the run" if share else "none")


def check_clipping(clip: Any) -> Found:
    """The limit of the gradient's norm.

    >>> check_clipping(None).is_fine, check_clipping({"vision": 0.5}).text
    (False, 'at 0.5 (vision)')
    """
    if clip is None:
        text = "none: one odd batch can spoil the run; 1.0 is usual (model.clip)"
        return Found("clipping", text, is_fine=False)
    limits = clip if isinstance(clip, dict) else {"": clip}
    if min(limits.values()) > LARGEST_CLIP:
        text = f"at {number(min(limits.values()))}, which hardly ever cuts; 1.0 is usual (model.clip)"
        return Found("clipping", text, is_fine=False)
    each = [f"{number(limit)} ({name})" if name else number(limit) for name, limit in limits.items()]
    return Found("clipping", f"at {', '.join(each)}")


def check_precision(trainer: Trainer) -> Found:
    """Whether the device computes in the precision that was asked for."""
    device = trainer.strategy.root_device
    precision = str(trainer.precision)
    if device.type == "cpu" and precision.startswith("16"):
        text = f"{precision} is no precision of CPUs; expected bf16-mixed or 32-true (trainer.precision)"
        return Found("precision", text, is_fine=False)
    if device.type == "cuda" and precision.startswith("bf16") and _is_old(device):
        name = torch.cuda.get_device_name(device)
        text = f"{name} has no bfloat16, which is slow there; 16-mixed isn't (trainer.precision)"
        return Found("precision", text, is_fine=False)
    return Found("precision", f"{precision} on {device.type}")


def _is_old(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return not torch.cuda.is_bf16_supported(including_emulation=False)


def check_validation(trainer: Trainer, data: VLMDataModule) -> Iterator[Found]:
    """Whether there is a validation where something waits for its scores.

    Raises:
        UserError: There is none, so that a score that a callback waits for can't come.
    """
    waits = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith(("val/", "val_")):
            waits[type(callback).__name__] = monitor
    if not waits or data.stages is not None:  # each stage may have validation data of its own
        return
    name, monitor = next(iter(waits.items()))
    if data.given["val"] is None:
        raise UserError(
            f"data.val: found nothing to validate on, and {name} waits for {monitor}; set data.val, such as "
            "10% of the training data, or monitor train/loss"
        )
    if trainer.limit_val_batches == 0:
        raise UserError(
            f"trainer.limit_val_batches: found 0, and {name} waits for {monitor}; leave it out, or monitor "
            "train/loss"
        )
    if monitor.startswith("val_"):
        ours = monitor.replace("_", "/", 1)
        yield Found("validation", f"{name} waits for {monitor}; VLMModule logs {ours}", is_fine=False)
    else:
        yield Found("validation", f"is there; {name} waits for {monitor}")


def check_data_settings(module: "VLMModule", trainer: Trainer, data: VLMDataModule) -> Iterator[Found]:
    """All of this room."""
    yield from check_warmup(module.schedule)
    yield check_clipping(module.clip)
    yield check_precision(trainer)
    yield from check_validation(trainer, data)
