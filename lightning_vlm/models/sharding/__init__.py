"""A model that is cut into pieces over the processes of a run (FSDP2)."""

from lightning_vlm.models.sharding.shard import is_sharded, sends_zeros, shard, whole_parameters
from lightning_vlm.models.sharding.whole import run_sharded

__all__ = ["is_sharded", "run_sharded", "sends_zeros", "shard", "whole_parameters"]
