"""The input of a linear layer and the gradient of its output, from the ordinary backward pass."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["RowGradients"]

Take = Callable[[Tensor, Tensor, Any], None]


class RowGradients:
    """Watches one linear layer `Y = X Wᵀ`: each backward pass through a call of it gives X and dL/dY.

    The gradient of W is a sum over rows, `Σ dYᵀ X`, so the gradient of some rows alone, such as the samples
    of one task, needs no backward pass of its own. W may be frozen or quantised, because it isn't read. The
    hook fires once for each call that the backward pass reaches, also with activation checkpointing of either
    kind (non-reentrant checkpointing then keeps this layer's X in memory). The method is that of Goodfellow
    (2015, https://arxiv.org/abs/1510.01799).

    Args:
        layer: Called as a module, with one tensor of shape [..., in] giving one of shape [..., out]. (Layers
            whose weight is read without a call are never seen.)
        take: Called with X and dL/dY, both detached, and the call's label.
        label: Called when the layer is called; what it returns is the label of that call. Without it the
            label is None.

    >>> import torch
    >>> layer, seen = nn.Linear(3, 2, bias=False), []
    >>> watch = RowGradients(layer, lambda x, dy, label: seen.append((dy.T @ x, label)), lambda: "a")
    >>> layer(torch.randn(5, 3)).square().sum().backward()
    >>> bool(torch.allclose(seen[0][0], layer.weight.grad)), seen[0][1]
    (True, 'a')
    >>> watch.remove()
    """

    def __init__(self, layer: nn.Module, take: Take, label: Callable[[], Any] | None = None) -> None:
        self._take = take
        self._label = label
        self._handle = layer.register_forward_hook(self._on_call)

    def _on_call(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:  # no gradient is wanted, or the first pass of a reentrant checkpoint
            return
        x = args[0].detach()
        label = None if self._label is None else self._label()

        def on_gradient(gradient: Tensor) -> None:
            self._take(x, gradient.detach(), label)

        output.register_hook(on_gradient)

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()
