"""The optimizer of a run, with its groups of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer

from lightning_vlm.errors import UserError
from lightning_vlm.optim.closures import check_closure
from lightning_vlm.optim.groups import groups_without_decay, parameter_groups


def make_optimizer(
    make: Callable[[Any], Optimizer], root: nn.Module, learning_rates: Mapping[str, float], trainer: Trainer
) -> Optimizer:
    """Make an optimizer for all that trains.

    Args:
        make: From groups to the optimizer; its own learning rate and weight decay are those of all groups.
        root: The module that trains.
        learning_rates: Selector -> its own learning rate.
        trainer: That will run it.

    Raises:
        UserError: As from `check_closure` and `parameter_groups`; or the optimizer doesn't take such groups.
    """
    defaults = check_closure(make, trainer).defaults
    groups = parameter_groups(root, defaults["lr"], defaults.get("weight_decay", 0.0), learning_rates)
    if "weight_decay" not in defaults:
        groups = groups_without_decay(groups)
    try:
        return make(groups)
    except ValueError as error:
        names = ", ".join(group["name"] for group in groups)
        raise UserError(f"model.optimizer: {error} (the groups are {names})") from None
