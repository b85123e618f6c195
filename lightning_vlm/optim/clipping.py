"""Clipping of gradients by their norm, of the whole model or of each part alone.

The gradients of a group are scaled together by one factor, which keeps their direction; clipping every tensor
alone would change it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from lightning_vlm_callbacks.selectors import overlaps
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_vlm.errors import UserError
from lightning_vlm.optim.groups import REST, trainable_parameters

ALL = "all"
"""Name of the only group when one limit holds for the whole model."""


def clip_groups(
    root: nn.Module, clip: float | Mapping[str, float] | None, excluded: Iterable[nn.Parameter] = ()
) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
    """Which parameters are clipped together, and to which norm: both arguments of `clip_gradients`.

    Args:
        root: Any module. Only parameters that require a gradient at the time of the call are looked at.
        clip: One limit for the norm of all gradients; or selector -> limit for each, with "rest"
            for all other trainable parameters. Without "rest" the others are not clipped. None clips nothing.
    Returns:
        Parameters by group and limit by group. The groups are "all", or the selectors and "rest".

    Raises:
        UserError: A limit is out of range; nothing is trainable; a selector finds nothing, or only frozen
            parameters; selectors overlap; "rest" has nothing left.

    >>> model = nn.ModuleDict({"projector": nn.Linear(2, 2), "language": nn.Linear(2, 2)})
    >>> groups, limits = clip_groups(model, {"projector": 0.5, "rest": 1.0})
    >>> {name: len(parameters) for name, parameters in groups.items()}, limits
    ({'projector': 2, 'rest': 2}, {'projector': 0.5, 'rest': 1.0})
    """
    if clip is None:
        return {}, {}
    limits = limits_of(clip)
    out = set(map(id, excluded))
    trainable = {name: weight for name, weight in trainable_parameters(root).items() if id(weight) not in out}
    if not isinstance(clip, Mapping):
        return {ALL: list(trainable.values())}, limits
    chosen: dict[str, dict[str, nn.Parameter]] = {}
    for selector in limits:
        if selector != REST:
            selected = trainable_parameters(root, selector)
            chosen[selector] = {name: weight for name, weight in selected.items() if id(weight) not in out}
    for name, first, selector in overlaps(chosen):
        raise UserError(
            f"clip: parameter {name!r} is taken by two selectors, {first!r} and {selector!r}; write "
            "selectors that don't overlap"
        )
    groups = {selector: list(parameters.values()) for selector, parameters in chosen.items()}
    if REST in limits:
        taken = {id(parameter) for group in groups.values() for parameter in group}
        groups[REST] = [parameter for parameter in trainable.values() if id(parameter) not in taken]
        if not groups[REST]:
            raise UserError(
                'clip: found "rest", but the other selectors take all that is trainable; leave it out'
            )
    return groups, limits


def limits_of(clip: float | Mapping[str, float]) -> dict[str, float]:
    """The limit of each group.

    Raises:
        UserError: One is out of range.

    >>> limits_of(1.0), limits_of({"projector": 0.5})
    ({'all': 1.0}, {'projector': 0.5})
    """
    limits = dict(clip) if isinstance(clip, Mapping) else {ALL: clip}
    for name, limit in limits.items():
        if not isinstance(limit, int | float) or not 0 < limit < math.inf:
            of = f"{name}: " if isinstance(clip, Mapping) else ""
            raise UserError(f"clip: found {of}{limit!r}; expected a number > 0 (null clips nothing)")
    return limits


def clip_gradients(
    groups: Mapping[str, Sequence[nn.Parameter]], limits: Mapping[str, float]
) -> dict[str, Tensor]:
    """Scale the gradients of each group in place so that their norm is at most the group's limit.

    Nothing is copied to the host, so a GPU is not waited for. A NaN or infinity in a group spoils the
    gradients of that whole group: look for it in the norms, or skip such steps before clipping.

    Args:
        groups: Parameters by group. Those without a gradient are passed over.
        limits: For each of the groups, the greatest 2-norm that its gradients together may have.
    Returns:
        The norm of each group before clipping: tensors of shape [], on the device of its first parameter.

    >>> import torch
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients({"all": [weight]}, {"all": 1.0})
    {'all': tensor(5.)}
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    norms = {}
    for name, parameters in groups.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # For an empty list torch returns a zero on the CPU.
        norm = nn.utils.get_total_norm(gradients).to(parameters[0].device)
        nn.utils.clip_grads_with_norm_(parameters, limits[name], norm)
        norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms
