"""Lets a Trainer load sharded checkpoints, safely and under any strategy."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_vlm_callbacks.ddp import gather_nothing
from lightning_vlm_callbacks.requirements import is_whole
from lightning_vlm_callbacks.sharded_checkpoints.folders import (
    META,
    check_folder,
    check_pieces,
    read_metadata,
)
from lightning_vlm_callbacks.sharded_checkpoints.from_file import load_file_in_pieces
from lightning_vlm_callbacks.sharded_checkpoints.loading import load_values, paths_of
from lightning_vlm_callbacks.sharded_checkpoints.whole import numbered, put, read_whole
from lightning_vlm_callbacks.sharded_checkpoints.writing import save_in_pieces

__all__ = ["use_sharded_checkpoints"]


def use_sharded_checkpoints(trainer: Trainer) -> None:
    """Let the strategy of a Trainer read and write sharded checkpoints.

    Call it in `setup`; twice does no harm. Under `ModelParallelStrategy` each rank reads its pieces, of a
    checkpoint that any number of ranks has written and that may hold only some of the weights; under one
    device and DDP it is read whole. Lightning's own way runs what is pickled in the folder, asks for all
    weights, needs the strategy that wrote it, and notices no damage.

    Raises:
        CheckpointError: `ckpt_path` is a folder that isn't a whole checkpoint, that could run code, or that
            was damaged; see `check_folder` and `check_pieces`.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        load: Any = _load_pieces
        strategy.save_checkpoint = partial(save_in_pieces, strategy)  # type: ignore[method-assign]
    elif is_whole(strategy):
        load = _load_whole
    else:  # whose checkpoints are of another kind
        return
    if trainer.ckpt_path and Path(trainer.ckpt_path).is_dir():
        check_folder(Path(trainer.ckpt_path))
        check_pieces(Path(trainer.ckpt_path), together=trainer.world_size > 1)
    strategy.load_checkpoint = partial(load, strategy)  # type: ignore[method-assign]


def _load_whole(
    strategy: Strategy, checkpoint_path: str | Path, weights_only: bool | None = None
) -> dict[str, Any]:
    path = Path(checkpoint_path)
    if path.is_dir():
        return read_whole(path, weights_only)
    return type(strategy).load_checkpoint(strategy, checkpoint_path, weights_only)


def _load_pieces(
    strategy: ModelParallelStrategy, checkpoint_path: str | Path, weights_only: bool | None = None
) -> dict[str, Any]:
    path = Path(strategy.broadcast(str(checkpoint_path)))
    module = strategy.lightning_module
    assert module is not None
    gather_nothing(module)
    if not path.is_dir():
        return load_file_in_pieces(strategy, module, path, weights_only)
    check_folder(path)
    check_pieces(path, together=True)
    found = read_metadata(path)
    weights = _given_weights(module, found)
    module.load_state_dict(weights, strict=module.strict_loading)  # refuses before anything is read
    values = {f"state_dict.{name}": one for name, one in weights.items() if not one.is_meta}
    states = [_State(number, one, module, found) for number, one in enumerate(strategy.optimizers)]
    for state in states:
        values |= state.values
    load_values(path, values, alone=False)
    module.load_state_dict(weights, strict=module.strict_loading)
    for state in states:
        state.give(values)
    return torch.load(path / META, map_location="cpu", weights_only=weights_only)


def _given_weights(module: LightningModule, found: Metadata) -> dict[str, Tensor]:
    """The weights that a checkpoint has: those of the module to read into, others without values."""
    own = module.state_dict()
    weights: dict[str, Tensor] = {}
    for name, path in paths_of(found).items():
        item = found.state_dict_metadata[name]
        if path[0] == "state_dict" and isinstance(item, TensorStorageMetadata):
            mine = own.get(path[1])
            if mine is None or mine.shape != item.size:
                mine = torch.empty(item.size, device="meta")
            weights[path[1]] = mine
    return weights


class _State:
    """The state of one optimizer, to be read from a checkpoint.

    Args:
        number: Of the optimizer.
        optimizer: It has the same parameters as the one that was saved.
        module: Gives them their names.
        found: The list of the checkpoint.

    Raises:
        MisconfigurationException: A state is of a parameter that isn't there.
    """

    def __init__(self, number: int, optimizer: Optimizer, module: nn.Module, found: Metadata) -> None:
        self._number, self._optimizer = number, optimizer
        self._names = {parameter: name for name, parameter in _parameters(module)}
        self._paths = {
            name: path for name, path in paths_of(found).items() if path[0] == f"optimizer_{number}"
        }
        parameters = dict(_parameters(module))
        self.values: dict[str, Any] = {}
        """What is to be read: tensors, and None for other values."""
        for name, path in self._paths.items():
            item = found.state_dict_metadata[name]
            if not isinstance(item, TensorStorageMetadata):
                self.values[name] = None
                continue
            parameter = parameters.get(path[2]) if path[1] == "state" else None
            if parameter is None:
                raise MisconfigurationException(
                    f"checkpoint: found the optimizer's state of {path[2]}, which the module doesn't have"
                )
            dtype = item.properties.dtype
            if isinstance(parameter, DTensor) and parameter.shape == item.size:
                self.values[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                self.values[name] = torch.empty(item.size, dtype=dtype, device=_device(parameter, path))

    def give(self, values: dict[str, Any]) -> None:
        """Give the optimizer what was read.

        Raises:
            MisconfigurationException: The optimizer's groups hold other parameters now.
        """
        nested: dict[str, Any] = {}
        for name, path in self._paths.items():
            put(nested, path[1:], values[name])
        groups = nested.get("param_groups", {})
        if not groups:
            raise MisconfigurationException(
                "checkpoint: found weights alone, from which a run can't be resumed; expected a checkpoint "
                "with the optimizer's state"
            )
        saved = [groups[index]["params"] for index in sorted(groups)]
        here = [
            [self._names.get(one, "?") for one in group["params"]] for group in self._optimizer.param_groups
        ]
        if saved != here:
            raise MisconfigurationException(
                f"checkpoint: found optimizer {self._number} with {_sizes(saved)}, now it has "
                f"{_sizes(here)}, or others; a run goes on with the optimizer that it had"
            )
        self._optimizer.load_state_dict(numbered(nested))


def _sizes(groups: list[list[str]]) -> str:
    return f"groups of {', '.join(str(len(group)) for group in groups)} parameters"


def _device(parameter: Tensor, path: tuple[Any, ...]) -> torch.device:
    return torch.device("cpu") if path[-1] == "step" else parameter.device


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names that checkpoints have."""
    for name, parameter in module.named_parameters():
        yield name.replace("_orig_mod.", ""), parameter
