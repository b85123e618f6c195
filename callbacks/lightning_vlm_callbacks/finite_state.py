"""Whether what an optimizer trains, and what it keeps of that, are finite."""

import math
from collections.abc import Iterable, Iterator

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vlm_callbacks.shards import local_part

__all__ = ["not_finite", "warn_if_not_finite", "what_is_not_finite"]

_MAX_NAMES = 3


def not_finite(module: nn.Module, optimizers: Iterable[Optimizer]) -> list[str]:
    """Names of the weights that hold NaN or infinity; where none does, of what optimizers keep of them.

    The host reads one number where all is finite.

    Args:
        module: Its weights have the names.
        optimizers: Only what they train is looked at.

    >>> module = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.Adam(module.parameters())
    >>> module.weight.grad = torch.full((1, 1), 1e30)  # its square is infinite
    >>> optimizer.step()
    >>> not_finite(module, [optimizer])
    ['exp_avg_sq of weight']
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    named = [one for optimizer in optimizers for one in _kept(optimizer, names)]
    tensors = [local_part(tensor.detach()) for _, tensor in named]
    tensors = [tensor for tensor in tensors if tensor.numel()]
    largest = torch.nn.utils.get_total_norm(tensors, norm_type=math.inf)
    if largest.isfinite():
        return []
    found = [(name, tensor) for name, tensor in named if not local_part(tensor.detach()).isfinite().all()]
    weights = [name for name, tensor in found if isinstance(tensor, nn.Parameter)]
    return weights or [name for name, _ in found]


def _kept(optimizer: Optimizer, names: dict[int, str]) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "a parameter")
            if parameter.is_floating_point():
                yield name, parameter
            for kind, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    yield f"{kind} of {name}", value


def what_is_not_finite(trainer: Trainer) -> str:
    """What `not_finite` finds in a fit, as a sentence; "" if all is finite, or nothing is fitted."""
    if trainer.state.fn != TrainerFn.FITTING:
        return ""
    found = not_finite(trainer.lightning_module, trainer.optimizers)
    if not found:
        return ""
    more = f", ... ({len(found)} in all)" if len(found) > _MAX_NAMES else ""
    names = ", ".join(found[:_MAX_NAMES])
    return (
        f"after step {trainer.global_step} NaN or infinity is in {names}{more}: go back to an earlier "
        "checkpoint, and lower the learning rate"
    )


def warn_if_not_finite(name: str, trainer: Trainer) -> None:
    """Warn of what `what_is_not_finite` finds, in the name of a callback."""
    found = what_is_not_finite(trainer)
    if found:
        rank_zero_warn(f"{name}: {found}")
