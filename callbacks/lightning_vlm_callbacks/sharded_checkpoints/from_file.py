"""Loads what one device has written into a model whose weights lie over several ranks."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["load_file_in_pieces"]


def load_file_in_pieces(
    strategy: ModelParallelStrategy, module: LightningModule, path: Path, weights_only: bool | None
) -> dict[str, Any]:
    """Each rank takes its pieces out of the file, which isn't read as a whole. All ranks must call it.

    Lightning's own way fails where a parameter has no optimizer's state yet, because it was frozen.

    Returns:
        The checkpoint without weights and the optimizers' states.
    """
    checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
    own = module.state_dict()
    weights = {name: _like(own.get(name), value) for name, value in checkpoint.pop("state_dict").items()}
    module.load_state_dict(weights, strict=module.strict_loading)
    states = checkpoint.pop("optimizer_states", [])
    for optimizer, state in zip(strategy.optimizers, states, strict=False):  # there are none to validate
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=False):  # torch compares the groups
            values = state["state"].get(number, {})
            for key, value in values.items():
                values[key] = _like(parameter, value)
        optimizer.load_state_dict(state)
    return checkpoint


def _like(mine: Tensor | None, value: Any) -> Any:
    """A tensor in pieces as another of its shape is."""
    if isinstance(mine, DTensor) and isinstance(value, Tensor) and value.shape == mine.shape:
        value = value.to(mine.device)
        return distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)
    return value
