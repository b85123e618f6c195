"""What the forward of a module does, as its code says. What isn't seen there is found by running it."""

import inspect
from collections.abc import Iterator
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
