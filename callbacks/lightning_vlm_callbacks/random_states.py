"""Saves and restores the states of all random generators."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["random_state", "set_random_state"]


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """The states of the generators of Python, NumPy (where it is imported), torch and its devices.

    They are plain numbers and tensors, so that a checkpoint with them loads with `weights_only`. The host
    doesn't wait for a device, whose generator counts on the host.

    Args:
        device: The only device whose generator is used; None takes all CUDA devices.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        algorithm, keys, *rest = numpy.random.get_state()
        state["numpy"] = [algorithm, keys.tolist(), *rest]
    if device is None and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif device is not None and device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Restore what `random_state` gave; the state of something that isn't here is passed over.

    Args:
        state: From this or an earlier process.
        device: As for `random_state`.

    >>> state = random_state()
    >>> first = torch.rand(1)
    >>> set_random_state(state)
    >>> bool(first == torch.rand(1))
    True
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"].cpu())
    numpy = sys.modules.get("numpy")
    if numpy is not None and state.get("numpy") is not None:
        numpy.random.set_state(tuple(state["numpy"]))
    if device is None and torch.cuda.is_available():
        here = state.get("cuda", [])[: torch.cuda.device_count()]
        for number, of_device in enumerate(here):
            torch.cuda.set_rng_state(of_device.cpu(), number)
    elif device is not None and device.type != "cpu" and state.get("device") is not None:
        torch.get_device_module(device).set_rng_state(state["device"], device)
