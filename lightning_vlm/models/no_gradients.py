"""Modules whose forward computes no gradients, so that they never learn (indexers of sparse attention)."""

import inspect
from functools import cache
from typing import Any

import torch
from torch import nn


def without_gradients(model: nn.Module) -> list[str]:
    """Paths of modules with weights whose forward is decorated with `torch.no_grad`: nothing below can learn.

    Args:
        model: With or without adapters.

    >>> class Chooses(nn.Linear):
    ...     @torch.no_grad()
    ...     def forward(self, states):
    ...         return super().forward(states).topk(2).indices
    >>> without_gradients(nn.Sequential(nn.Linear(2, 2), Chooses(2, 4)))
    ['1']
    """
    found = []
    for path, module in model.named_modules():
        kind: Any = type(module)
        has_weights = any(True for _ in module.parameters())
        if has_weights and _computes_none(kind):
            found.append(path)
    return found


@cache
def _computes_none(kind: Any) -> bool:
    wrapper = kind.forward
    if not hasattr(wrapper, "__wrapped__"):
        return False
    factory = inspect.getclosurevars(wrapper).nonlocals.get("ctx_factory")
    return isinstance(getattr(factory, "__self__", None), torch.no_grad)
