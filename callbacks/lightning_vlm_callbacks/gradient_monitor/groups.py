"""The groups of parameters whose gradients are measured together. For `GradientMonitor`."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from lightning_vlm_callbacks.selectors import select_parameters

__all__ = ["ALL", "parameter_groups"]

ALL = "all"
"""The name of the group of all parameters."""


def parameter_groups(module: nn.Module, selectors: Sequence[str] | None) -> dict[str, list[Parameter]]:
    """The parameters of each group, and of all, without those that have no elements.

    Args:
        module: What the groups are in.
        selectors: Of the groups. None: the parts if the module has a mapping `parts`, without parts of
            parts; else its children, or if all is in one of them, that one's.

    >>> list(parameter_groups(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), None))
    ['0.0', '0.1', 'all']
    """
    if selectors is None:
        selectors = _parts(module)
    groups: dict[str, Iterable[Parameter]] = {}
    if selectors is None:
        for name, branch in _branches(module).items():
            groups[name] = branch.parameters()
    else:
        for selector in selectors:
            groups[selector] = select_parameters(module, selector).values()
    groups[ALL] = module.parameters()
    return {name: _not_empty(parameters) for name, parameters in groups.items()}


def _not_empty(parameters: Iterable[Parameter]) -> list[Parameter]:
    return [parameter for parameter in parameters if parameter.numel() > 0]


def _parts(module: nn.Module) -> list[str] | None:
    """The parts that have a path and aren't inside another part, if the module has a mapping `parts`."""
    parts = getattr(module, "parts", None)
    if not isinstance(parts, Mapping) or not parts:
        return None
    inside = tuple(f"{part}." for part in parts)
    return [part for part, paths in parts.items() if paths and not part.startswith(inside)]


def _branches(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a module, or of the one child that has everything."""
    branches = _children(module)
    while len(branches) == 1:
        [(name, only_child)] = branches.items()
        below = _children(only_child)
        if not below:
            break
        branches = {f"{name}.{child_name}": child for child_name, child in below.items()}
    return branches


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """The children that have parameters."""
    found = {}
    for name, child in module.named_children():
        has_parameters = next(child.parameters(), None) is not None
        if has_parameters:
            found[name] = child
    return found
