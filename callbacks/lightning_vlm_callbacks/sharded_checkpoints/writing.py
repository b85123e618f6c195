"""Writes the checkpoint of a run whose ranks hold pieces, with checksums that torch doesn't write."""

import io
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, save

from lightning_vlm_callbacks.checksums import SummedFiles, write_checksums
from lightning_vlm_callbacks.sharded_checkpoints.folders import META
from lightning_vlm_callbacks.whole_files import finished_name, naming

__all__ = ["save_in_pieces", "split_off_pieces", "write_pieces"]


def save_in_pieces(
    strategy: ModelParallelStrategy,
    checkpoint: dict[str, Any],
    filepath: str | Path,
    storage_options: Any | None = None,
) -> None:
    """As the strategy does, but with checksums. All ranks must call it."""
    if storage_options is not None or not strategy._save_distributed_checkpoint:
        type(strategy).save_checkpoint(strategy, checkpoint, filepath, storage_options)
        return
    folder = Path(strategy.broadcast(str(filepath)))
    if folder.is_file():
        folder.unlink()
    values, rest = split_off_pieces(checkpoint, strategy.is_global_zero)
    write_pieces(values, rest, folder, None)


def split_off_pieces(checkpoint: dict[str, Any], is_global_zero: bool) -> tuple[dict[str, Any], bytes]:
    """What the ranks write together, and the bytes of what the first one writes alone.

    Args:
        checkpoint: Loses what the ranks write together.
        is_global_zero: On other ranks there are no such bytes.
    """
    values = {"state_dict": checkpoint.pop("state_dict")}
    for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
        values[f"optimizer_{number}"] = state
    rest = io.BytesIO()
    if is_global_zero:
        torch.save(checkpoint, rest)
    return values, rest.getvalue()


def write_pieces(values: dict[str, Any], rest: bytes, folder: Path, group: Any) -> None:
    """All ranks write their pieces, then the first one the checksums of all files and the rest of the run.

    Args:
        values: Name -> state of weights or of an optimizer, in pieces.
        rest: Of the first rank; `meta.pt`, which says that the checkpoint is whole.
        folder: Where.
        group: Of the ranks; None is the usual one.
    """
    files = SummedFiles()
    writer = FileSystemWriter(folder)
    writer.fs = files
    save(values, storage_writer=writer, planner=DefaultSavePlanner(), process_group=group)
    every: list[Any] = [{}] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(every, files.sums, group)
    if rest:
        sums = {name: one for sums in every for name, one in sums.items()}
        with naming(finished_name(folder) / META):
            write_checksums(folder, sums | {META: zlib.crc32(rest)})
            (folder / META).write_bytes(rest)
