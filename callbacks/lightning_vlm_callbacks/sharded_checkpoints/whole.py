"""A sharded checkpoint as what one file would have held."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_vlm_callbacks.sharded_checkpoints.folders import (
    META,
    check_folder,
    check_pieces,
    read_metadata,
)
from lightning_vlm_callbacks.sharded_checkpoints.loading import load_values, paths_of

__all__ = ["numbered", "put", "read_whole"]


def read_whole(folder: Path, weights_only: bool | None = None, device: str = "cpu") -> dict[str, Any]:
    """What `Trainer.save_checkpoint` would have written on one device.

    Args:
        folder: A sharded checkpoint.
        weights_only: For `meta.pt`, as of `torch.load`. The tensors never need more.
        device: `meta` to leave the values of tensors out.

    Returns:
        The checkpoint, whose `state_dict` and `optimizer_states` are whole.

    Raises:
        CheckpointError: It isn't a whole checkpoint, could run code, or was damaged; see `check_folder` and
            `check_pieces`.
    """
    check_folder(folder)
    if device != "meta":
        check_pieces(folder)
    found = read_metadata(folder)
    values: dict[str, Any] = {}
    for name, item in found.state_dict_metadata.items():
        values[name] = None
        if isinstance(item, TensorStorageMetadata):
            values[name] = torch.empty(item.size, dtype=item.properties.dtype, device=device)
    read = {name: value for name, value in values.items() if value is None or not value.is_meta}
    with warnings.catch_warnings(action="ignore"):  # torch says that one process reads alone
        load_values(folder, read, alone=True)
    values |= read
    nested: dict[str, Any] = {}
    for name, path in paths_of(found).items():
        put(nested, path, values[name])
    checkpoint: dict[str, Any] = torch.load(folder / META, map_location=device, weights_only=weights_only)
    checkpoint["state_dict"] = nested.pop("state_dict", {})
    states = [nested[name] for name in sorted(nested, key=lambda name: int(name.removeprefix("optimizer_")))]
    if states:
        checkpoint["optimizer_states"] = [numbered(state) for state in states]
    return checkpoint


def numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the numbers of parameters instead of their names.

    >>> state = {"state": {"b": {"step": 1}}, "param_groups": {0: {"lr": 0.1, "params": ["a", "b"]}}}
    >>> numbered(state)
    {'state': {1: {'step': 1}}, 'param_groups': [{'lr': 0.1, 'params': [0, 1]}]}
    """
    groups = [state["param_groups"][index] for index in sorted(state["param_groups"])]
    names = [name for group in groups for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: values for name, values in state.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in groups
        ],
    }


def put(nested: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    """Put a value where its path says, into dictionaries that are made on the way."""
    for key in path[:-1]:
        nested = nested.setdefault(key, {})
    nested[path[-1]] = value
