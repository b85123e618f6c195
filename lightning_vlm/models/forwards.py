"""What the forward of a module does, as its code says. What isn't seen there is found by running it."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import CodeType

from torch import nn


def codes(module: nn.Module) -> Iterator[CodeType]:
    """The code of a module's forward, without its decorators, and of functions inside of it."""
    forward = inspect.unwrap(type(module).forward)
    waiting = [forward.__code__] if hasattr(forward, "__code__") else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def makes_masks(module: nn.Module) -> bool:
    """Whether a forward makes attention masks, by functions such as `create_causal_mask`."""
    for code in codes(module):
        for name in code.co_names:
            if name.startswith("create_") and "mask" in name:
                return True
    return False


READ_DIRECTLY = ("prediction_coefs", "correction_coefs")
"""Layers whose weights are read or set in training, beside or instead of a call (of AltUp in Gemma 3n)."""


def is_read_directly(name: str) -> bool:
    """Whether a layer can't be wrapped or quantised, as the code around it takes its weight.

    Args:
        name: Of the layer in the model.

    >>> is_read_directly("layers.0.altup.correction_coefs"), is_read_directly("layers.0.mlp.up_proj")
    (True, False)
    """
    return name.rpartition(".")[2] in READ_DIRECTLY


def asked_for_dtype(module: nn.Module) -> list[nn.Module]:
    """The layers inside of a module by whose weights its forward says in which dtype it computes.

    >>> class Patches(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embedding = nn.Linear(2, 2)
    ...     def forward(self, pixels):
    ...         return self.embedding(pixels.to(self.embedding.weight.dtype))
    >>> asked_for_dtype(Patches())
    [Linear(in_features=2, out_features=2, bias=True)]
    """
    inside = dict(module.named_modules())
    return [inside[path] for path in _paths_asked_for_dtype(type(module).forward) if path in inside]


@cache
def _paths_asked_for_dtype(forward: Callable) -> Sequence[str]:
    try:
        source = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):  # a class that was made without a file
        return ()
    return tuple(dict.fromkeys(re.findall(r"self\.([\w.]+)\.weight\.dtype", source)))


def passes(parent: nn.Module, argument: str) -> bool:
    """Whether a module, or one inside of it, calls something with a keyword argument of this name.

    >>> class Half(nn.Module):
    ...     def forward(self, x):
    ...         return x.sum(dim=0)
    >>> passes(nn.Sequential(Half()), "dim"), passes(nn.Sequential(Half()), "x")
    (True, False)
    """
    one_of_each = {type(module): module for module in parent.modules()}
    for module in one_of_each.values():
        for code in codes(module):
            for constant in code.co_consts:  # names of arguments are a tuple; of a dictionary, strings
                if constant == argument or (isinstance(constant, tuple) and argument in constant):
                    return True
    return False
