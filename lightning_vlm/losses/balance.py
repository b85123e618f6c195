"""The load-balancing loss of a mixture of experts, and how many tokens each expert gets."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LayerRouting(NamedTuple):
    """Where the tokens of a batch go in one layer.

    Args:
        logits: Tensor of shape [tokens, experts]: the router's.
        chosen: Tensor of shape [tokens, top_k], int64: the experts that each token goes through.
        real: Tensor of shape [tokens], bool: False where there is padding; None where there is none.
    """

    logits: Tensor
    chosen: Tensor
    real: Tensor | None


def balance_loss(layers: Sequence[LayerRouting]) -> Tensor:
    """The auxiliary loss of the Switch Transformer (Fedus et al. 2021, https://arxiv.org/abs/2101.03961).

    It is `E Σ f P` over the E experts, where f is the share of tokens that go through an expert, of those of
    all layers together, and P the mean probability that routers give it: as transformers computes it, with
    padding left out. Even routing gives `top_k`. Only P has a gradient.

    It is no sum over tokens: f and P are means, and their product of a batch isn't the mean of those of its
    halves. So the loss of a step is that of each micro-batch on each rank by itself, averaged.

    Args:
        layers: Of the same tokens and with the same number of experts.

    Returns:
        Scalar of the logits' dtype, at least float32.

    >>> logits = torch.zeros(3, 4)
    >>> chosen = torch.tensor([[0, 1], [2, 3], [0, 2]])
    >>> balance_loss([LayerRouting(logits, chosen, None)])
    tensor(2.)
    """
    experts = layers[0].logits.shape[-1]
    counts = torch.stack([expert_counts(layer) for layer in layers]).sum(0)
    probabilities = []
    tokens: Tensor | int = 0
    for layer in layers:
        wide = layer.logits if layer.logits.dtype == torch.float64 else layer.logits.float()
        of_layer = wide.softmax(-1)
        if layer.real is None:
            tokens = tokens + len(layer.logits)
        else:
            of_layer = of_layer * layer.real[:, None]
            tokens = tokens + layer.real.sum()
        probabilities.append(of_layer.sum(0))
    sums = torch.stack(probabilities).sum(0)
    total = tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(tokens, 1)
    return experts * (counts.to(sums.dtype) / total * (sums / total)).sum()


def expert_counts(layer: LayerRouting) -> Tensor:
    """How many tokens go through each expert: a Tensor of shape [experts], int64, padding not counted.

    >>> routing = LayerRouting(torch.zeros(2, 3), torch.tensor([[0, 2], [0, 1]]), torch.tensor([True, False]))
    >>> expert_counts(routing)
    tensor([1, 0, 1])
    """
    ones = torch.ones_like(layer.chosen)
    if layer.real is not None:
        ones = layer.real[:, None].expand_as(layer.chosen)
    counts = torch.zeros(layer.logits.shape[-1], dtype=torch.int64, device=layer.chosen.device)
    return counts.index_add(0, layer.chosen.flatten(), ones.flatten().long())
