"""The optimizer of a run, with its groups of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from lightning_vlm.errors import UserError
from lightning_vlm.optim.closures import check_closure
from lightning_vlm.optim.groups import groups_without_decay, parameter_groups

FUSED_ON = {"cuda"}
"""Kinds of devices on which Adam takes its step in one kernel unless its arguments say how."""


def make_optimizer(
    make: Callable[[Any], Optimizer], root: nn.Module, learning_rates: Mapping[str, float], trainer: Trainer
) -> Optimizer:
    """Make an optimizer for all that trains. Adam and AdamW are fused on a GPU; see `may_be_fused`.

    Args:
        make: From groups to the optimizer; its own learning rate and weight decay are those of all groups.
        root: The module that trains.
        learning_rates: Selector -> its own learning rate.
        trainer: That will run it.

    Raises:
        UserError: As from `check_closure` and `parameter_groups`; or the optimizer doesn't take such groups.
    """
    trial = check_closure(make, trainer)
    defaults = trial.defaults
    groups = parameter_groups(root, defaults["lr"], defaults.get("weight_decay", 0.0), learning_rates)
    if "weight_decay" not in defaults:
        groups = groups_without_decay(groups)
    free = may_be_fused(trial)
    if free:
        fused = True if trainer.strategy.root_device.type in FUSED_ON else None
        # As an option of groups, not of the optimizer: that would leave the unscaling of float16 to its step,
        # and gradients can't be clipped then.
        groups = [{**group, "fused": fused} for group in groups]
    try:
        optimizer = make(groups)
    except ValueError as error:
        names = ", ".join(group["name"] for group in groups)
        raise UserError(f"model.optimizer: {error} (the groups are {names})") from None
    if free:
        optimizer.register_load_state_dict_pre_hook(_load_as_fused_as_it_is)
    return optimizer


def may_be_fused(optimizer: Optimizer) -> bool:
    """Whether an optimizer's step may be one kernel: it is PyTorch's Adam or AdamW, and no argument chooses.

    >>> weight = nn.Linear(1, 1).weight
    >>> may_be_fused(AdamW([weight])), may_be_fused(AdamW([weight], foreach=True))
    (True, False)
    """
    given = optimizer.defaults
    if type(optimizer) not in (Adam, AdamW) or given["capturable"] or given["differentiable"]:
        return False
    return given["fused"] is None and given["foreach"] is None


def _load_as_fused_as_it_is(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint may come from another kind of device. Where the steps are kept depends on it."""
    groups = []
    for now, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        groups.append({**saved, "fused": now["fused"]})
    return {**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]}
