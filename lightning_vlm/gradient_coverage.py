"""Which parameters a loss depends on, found out without a backward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def without_saved_tensors() -> torch.autograd.graph.saved_tensors_hooks:
    """A context in which a forward builds its graph but keeps no activations. A backward is impossible."""

    def unpack(_: None) -> Tensor:
        raise RuntimeError("the activations of this forward were not kept")

    return torch.autograd.graph.saved_tensors_hooks(lambda _: None, unpack)


def outside_graph(loss: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Names of the trained parameters that a loss doesn't depend on.

    Args:
        loss: A tensor with a graph.
        parameters: Names and parameters; frozen ones are passed over.

    >>> used, unused = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> outside_graph(used(torch.ones(1)).sum(), [("used", used.weight), ("unused", unused.weight)])
    ['unused']
    """
    waiting = [loss.grad_fn]
    seen = set()
    reached = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the node that adds to a parameter's gradient
            reached.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return [name for name, weight in parameters if weight.requires_grad and id(weight) not in reached]
