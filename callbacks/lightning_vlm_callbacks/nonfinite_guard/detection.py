"""What a step was made of, and whether its losses and gradients are finite."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_vlm_callbacks.shards import local_part

__all__ = ["Bad", "Event", "MicroBatch", "bad_gradients", "find_bad"]


@dataclass
class MicroBatch:
    """The data needed to run a training_step again."""

    batch: Any
    batch_idx: int
    random: dict[str, Any]
    loss: Tensor | None = None


@dataclass
class Event:
    """What was seen in a step.

    Args:
        what: Such as "the loss is NaN or infinite".
        outcome: What became of the step, as a sentence.
        window: The micro-batches of the step.
        affected: Parameters whose gradient was bad.
    """

    what: str
    outcome: str
    window: list[MicroBatch]
    affected: list[str]


class Bad(NamedTuple):
    """What is wrong with a step, on any rank.

    Args:
        loss: A loss is NaN or infinite.
        gradient: A gradient holds NaN or infinity.
        norm: All gradients are finite, but float32 can't hold their squares: clipping by their norm would
            make zeros of them, and Adam's second moments would stay infinite, so that these weights never
            move again.
    """

    loss: bool = False
    gradient: bool = False
    norm: bool = False


def find_bad(trainer: Trainer, losses: list[Tensor | None], optimizer: Optimizer) -> Bad:
    """Whether the losses of a step, and its gradients, hold NaN or infinity on any rank."""
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradients.append(_values(parameter.grad))
    gradients = [gradient for gradient in gradients if gradient.numel()]
    norm = torch.nn.utils.get_total_norm(gradients).to(trainer.strategy.root_device)
    total = norm.new_zeros(())
    for loss in losses:
        if loss is not None:
            total = total + loss.float().sum()
    is_finite = torch.stack((total, norm)).isfinite()
    bad = trainer.strategy.reduce((~is_finite).float(), reduce_op="max")
    if not bad.any().item():  # the one number that the host waits for
        return Bad()
    # A norm in half precision overflows early, so this is checked exactly.
    are_finite = all(gradient.isfinite().all() for gradient in gradients)
    wide = [gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients]
    is_too_large = not torch.nn.utils.get_total_norm(wide).isfinite()
    found = torch.stack((bad[0], bad.new_tensor(not are_finite), bad.new_tensor(is_too_large)))
    bad_loss, bad_gradient, bad_norm = trainer.strategy.reduce(found, reduce_op="max").tolist()
    return Bad(bool(bad_loss), bool(bad_gradient), bool(bad_norm))


def bad_gradients(module: LightningModule) -> list[str]:
    """Names of the parameters whose gradient holds NaN or infinity."""
    found = []
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not _values(parameter.grad).isfinite().all():
            found.append(name)
    return found


def _values(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else local_part(gradient)
