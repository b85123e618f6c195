"""Reads values of a sharded checkpoint into tensors, whole ones or those that lie over several ranks."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from lightning_vlm_callbacks.sharded_checkpoints.folders import read_metadata

__all__ = ["load_values", "paths_of"]


def paths_of(found: Metadata) -> dict[str, tuple[Any, ...]]:
    """Where each value of a checkpoint belongs: its name -> such as ("optimizer_0", "state", weight, key)."""
    planned = found.planner_data if isinstance(found.planner_data, Mapping) else {}
    return {name: tuple(planned.get(name, (name,))) for name in found.state_dict_metadata}


def load_values(folder: Path, values: dict[str, Any], alone: bool) -> None:
    """Read values in place.

    Args:
        folder: A sharded checkpoint.
        values: Name -> the tensor to read into, or None for what isn't a tensor, which is replaced.
        alone: Whether this process reads for itself; otherwise all ranks must call it with the same names.
    """
    if values:
        load(values, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)


class _Reader(FileSystemReader):
    """Reads the list without running what is pickled in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found = read_metadata(Path(self.path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


class _Planner(DefaultLoadPlanner):
    """Reads what isn't a tensor without running what is pickled in it."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        torch.load(value, map_location="cpu", weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)
