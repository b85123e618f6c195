"""What one part of a model costs: a vision tower with its projector, a language model, or a head."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lightning_vlm.models.operations.trace import Call, Trace

Window = int | None
"""How far a layer's attention looks; None is as far as the sequence goes."""
TOLERANCE = 0.001
"""By how much PyTorch's count of a trial may differ: rotary embeddings may have small products too."""


class UncountableError(Exception):
    """What a part computes can't be counted; the message says why in a few words."""


class Attention(NamedTuple):
    """The attention of a layer.

    Args:
        last: Its last product, which reads what attention gives.
        width: Heads times the width of each.
        window: How far it looks.
    """

    last: Call
    width: int
    window: Window


class Cost(NamedTuple):
    """Operations of forward and backward.

    Args:
        per_row: For each token, patch or tile.
        per_pair: For each pair of tokens that attention compares, by the windows of layers, summed over them.
        has_gradient: Whether what comes out has a gradient.
    """

    per_row: float
    per_pair: dict[Window, float]
    has_gradient: bool


def cost_of(
    seen: Trace, rows: int, attentions: Sequence[Attention] = (), unused: Collection[nn.Module] = ()
) -> Cost:
    """What was seen, for one row.

    A product costs the same three times: forward, for the gradient of what it reads, and for the gradient of
    its matrix; the last two only where they are needed. Attention has two products forward and four backward,
    which count together where q, k or v has a gradient.

    Args:
        seen: The trial of a part.
        rows: How many tokens, patches or tiles it was seen with.
        attentions: Of its layers.
        unused: Modules whose output nothing uses, so that they have no backward.
    """
    total = 0
    for call in seen.calls:
        times = 1 if call.module in unused else 1 + call.is_reached + call.trains
        total += times * call.rows * call.operations
    per_pair: dict[Window, float] = {}
    for last, width, window in attentions:
        times = 3 if last.is_reached and last.module not in unused else 1
        per_pair[window] = per_pair.get(window, 0) + 4 * width * times
    return Cost(total / rows, per_pair, seen.has_gradient)


def check_trial(
    seen: Trace, attentions: Sequence[Attention], pairs: Mapping[Window, float], name: str
) -> None:
    """Hold what was found against what PyTorch counted in the same forward pass.

    Args:
        seen: The trial.
        attentions: Found in it.
        pairs: How many pairs of tokens each kind of layer compared.
        name: Of the part, for people.

    Raises:
        UncountableError: They differ, so that there is something else.
    """
    products = sum(call.rows * call.operations for call in seen.calls)
    attention = sum(4 * width * pairs[window] for _, width, window in attentions)
    # Some kernels of attention aren't counted by PyTorch.
    differences = [abs(found - seen.counted) for found in (products, products + attention)]
    if min(differences) > TOLERANCE * seen.counted:
        raise UncountableError(
            f"the {name} has something that isn't known: {seen.counted:,} operations in a trial, of which "
            f"{products + attention:,.0f} were found"
        )


def find_attentions(
    calls: Sequence[Call], layers: nn.Module, windows: Sequence[Window], name: str
) -> list[Attention]:
    """The attention of each layer.

    Args:
        calls: Of the part.
        layers: Its blocks.
        windows: Of each block.
        name: Of the part, for people.

    Raises:
        UncountableError: A block has none, or several.
    """
    found = []
    for layer, window in zip(layers.children(), windows, strict=True):
        inner = [child for path, child in layer.named_children() if "attn" in path or "attention" in path]
        last = [call for child in inner for call in _products(calls, child)[-1:]]
        if len(last) != 1:
            kind = type(layer).__name__
            raise UncountableError(f"the {name} has {len(last)} attentions in a {kind}; expected one")
        module: Any = last[0].module
        found.append(Attention(last[0], module.in_features, window))
    return found


def _products(calls: Sequence[Call], attention: nn.Module) -> list[Call]:
    """The products in it; adapters beside them don't count."""
    inside = {module: path for path, module in attention.named_modules()}
    return [
        call
        for call in calls
        if isinstance(call.module, nn.Linear)
        and call.module in inside
        and not any(name in inside[call.module] for name in ("lora_", "adapter"))
    ]
