"""Runs methods of a sharded module as if they were its forward, around which FSDP2 gathers weights."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_vlm.models.replaced import replaced

Result = TypeVar("Result")


def run_whole(root: nn.Module, run: Callable[[], Result]) -> Result:
    """Call a function while what no block of a sharded module holds is whole.

    Args:
        root: As `shard` has cut it.
        run: May call the module's parts. A tensor that it returns may be run backward from.
    """
    # Without arguments: FSDP2 would move those to the device, also what is wanted on the host.
    with replaced(root, "forward", run):
        return root()


def run_sharded(root: Any, *names: str) -> None:
    """Let methods of a sharded module find its weights whole, also when they call each other. In place.

    Args:
        root: As `shard` has cut it.
        names: Of methods.
    """
    is_inside = False

    def with_whole_weights(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return method(*args, **kwargs)
            is_inside = True
            try:
                if torch.is_grad_enabled():
                    return run_whole(root, lambda: method(*args, **kwargs))
                # What is gathered in inference mode could not be trained later.
                with torch.inference_mode(False), torch.no_grad():
                    found = run_whole(root, lambda: method(*args, **kwargs))
                root.reshard()  # no backward follows
                return found
            finally:
                is_inside = False

        return call

    for name in names:
        setattr(root, name, with_whole_weights(getattr(root, name)))
