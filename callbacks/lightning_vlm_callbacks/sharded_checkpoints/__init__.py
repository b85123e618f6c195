"""Checkpoints of sharded runs: folders with a piece from each rank, read safely on any number of ranks."""

from lightning_vlm_callbacks.sharded_checkpoints.folders import check_folder, is_sharded
from lightning_vlm_callbacks.sharded_checkpoints.resuming import use_sharded_checkpoints
from lightning_vlm_callbacks.sharded_checkpoints.whole import read_whole

__all__ = ["check_folder", "is_sharded", "read_whole", "use_sharded_checkpoints"]
