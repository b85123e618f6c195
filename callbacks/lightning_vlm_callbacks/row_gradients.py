"""What goes into a linear layer and the gradient of what comes out of it, from the ordinary backward."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["RowGradients"]

Take = Callable[[Tensor, Tensor, Any], None]


class RowGradients:
    """Watches one linear layer `Y = X Wᵀ`: each backward through a call of it gives X and dL/dY.

    Any gradient of W is a sum over rows, `Σ dYᵀ X`, so that of some rows alone, the samples of one task say,
    needs no backward of its own. W may be frozen or quantised: it isn't read. Fires once for each call that
    the backward reaches, with activation checkpointing of either kind too (then X of this layer is kept
    where the checkpoint isn't reentrant). The method is that of
    Goodfellow (2015, https://arxiv.org/abs/1510.01799).

    Args:
        layer: Called as a module, with one tensor of shape [..., in] giving one of shape [..., out]. (Layers
            whose weight is read without a call are never seen.)
        take: Called with X and dL/dY, both detached, and the `tag` that was set when the layer was called.

    >>> import torch
    >>> layer, seen = nn.Linear(3, 2, bias=False), []
    >>> watch = RowGradients(layer, lambda x, dy, tag: seen.append((dy.T @ x, tag)))
    >>> watch.tag = "a"
    >>> layer(torch.randn(5, 3)).square().sum().backward()
    >>> bool(torch.allclose(seen[0][0], layer.weight.grad)), seen[0][1]
    (True, 'a')
    >>> watch.remove()
    """

    def __init__(self, layer: nn.Module, take: Take) -> None:
        self.tag: Any = None
        """A label of the next call of the layer; set it before that call."""
        self._take = take
        self._handle = layer.register_forward_hook(self._called)

    def _called(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:  # no gradient asked for, or the first pass of a reentrant checkpoint
            return
        x, tag = args[0].detach(), self.tag

        def reached(gradient: Tensor) -> None:
            self._take(x, gradient.detach(), tag)

        output.register_hook(reached)

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()
