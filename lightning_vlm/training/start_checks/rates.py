"""Whether a learning rate is usual for what it trains, and for how much of it.

For adapters: LoRA's paper trains models from 100 million to 175 billion parameters at 2e-4 to 1e-3 (Hu et
al., 2021), QLoRA those from 7 billion on at 1e-4 to 2e-4 (Dettmers et al., 2023). The rate depends little on
the size of the model, but at 2e-5, which is a rate of full fine-tuning, adapters learn little.

For whole weights the largest stable rate falls with their number. "Scaling Laws for Neural Language Models"
(Kaplan et al., 2020, eq. D.1) trains from scratch at 0.003239 - 0.0001395 ln N. Weights that already know
something are spoilt by more than that; LLaVA 1.5 takes 2e-5 for 7 billion, and 1e-3 for a projector alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lightning_vlm.training.start_checks.found import Found, number

NAME = "learning rate"
ADAPTERS = ("lora_", "ia3_", "adapter_")
"""What a part of an adapter's name begins with."""
SMALL = 100e6
"""Models with fewer parameters learn well at many rates."""
MOST_OF_ADAPTERS = 1e-3
LEAST_OF_ADAPTERS = 2e-5
LEAST = 1e-7
MOST = 0.5
"""Of AdamW, whose steps are about as long as the rate, and of what comes close."""
ADAPTED, WHOLE = "adapters", "whole weights"


class Trained(NamedTuple):
    """What trains at one rate, in one way."""

    how: str
    """`ADAPTED` or `WHOLE`."""
    rate: float
    size: int
    """Parameters that train so."""


def trained_of(groups: Sequence[Mapping[str, Any]], root: nn.Module) -> list[Trained]:
    """What trains, by rate and way, most parameters first.

    Args:
        groups: As from `parameter_groups`.
        root: The module whose parameters they have.
    """
    adapters = {id(one) for name, one in root.named_parameters() if _is_adapter(name)}
    sizes: dict[tuple[str, float], int] = {}
    for group in groups:
        for parameter in group["params"]:
            way = (ADAPTED if id(parameter) in adapters else WHOLE, group["lr"])
            sizes[way] = sizes.get(way, 0) + parameter.numel()
    found = [Trained(*way, size) for way, size in sizes.items()]
    return sorted(found, key=lambda trained: -trained.size)


def check_rates(trained: Sequence[Trained], size: int) -> Found:
    """Compare rates with usual ones.

    Args:
        trained: As from `trained_of`.
        size: The parameters of the whole model.

    >>> check_rates([Trained("whole weights", 2e-4, 7_000_000_000)], 7_000_000_000).is_fine
    False
    >>> check_rates([Trained("adapters", 2e-4, 40_000_000)], 7_000_000_000).text
    '2e-4 for adapters'
    >>> check_rates([Trained("whole weights", 2e-3, 2_500_000)], 2_500_000).is_fine
    True
    """
    for advice in _advice(trained, size):
        return Found(NAME, advice, is_fine=False)
    return Found(NAME, ", ".join(f"{number(one.rate)} for {one.how}" for one in trained))


def most_of_weights(size: int) -> float:
    """The rate at which a model of this size is trained from scratch (Kaplan et al., 2020, eq. D.1).

    >>> f"{most_of_weights(7_000_000_000):.1e}", f"{most_of_weights(250_000_000):.1e}"
    ('7.7e-05', '5.4e-04')
    """
    return max(0.003239 - 0.0001395 * math.log(size), 1e-5)


def _advice(trained: Sequence[Trained], size: int) -> Iterator[str]:
    for how, rate, trains in trained:
        found = f"{number(rate)} for {how}"
        most = most_of_weights(trains)
        if how == ADAPTED and size >= SMALL and rate > MOST_OF_ADAPTERS:
            yield f"{found} is more than usual; 1e-4 to 5e-4 are"
        elif how == ADAPTED and size >= SMALL and rate <= LEAST_OF_ADAPTERS:
            yield f"{found} is less than usual; 1e-4 to 5e-4 are"
        elif how == WHOLE and trains >= SMALL and rate > most:
            billions = f"{trains / 1e9:.1f} billion" if trains >= 1e9 else f"{trains / 1e6:.0f} million"
            yield f"{found} spoils {billions} parameters; 1e-6 to 5e-5 are usual"
        elif rate >= MOST:
            yield f"{found} is far too much; 1e-6 to 1e-3 are usual"
        elif rate < LEAST:
            yield f"{found} changes next to nothing; 1e-6 is little"


def _is_adapter(name: str) -> bool:
    return any(part.startswith(ADAPTERS) for part in name.split("."))
