"""A copy of a run's state as it is now, and how to write it while training goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from lightning_vlm_callbacks.sharded_checkpoints.writing import split_off_pieces, write_pieces

__all__ = ["CopiedState"]


class CopiedState:
    """Copies the state of a run to the CPU, so that it can be written later as it was.

    Under `ModelParallelStrategy` ranks that write together agree over a group of their own, since training
    uses the other at the same time.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def take(self, trainer: Trainer, file: Path) -> Callable[[], None]:
        """Copy the state. All ranks must call it.

        Args:
            trainer: Whose state.
            file: Where it is to be written: a folder if the ranks write pieces.

        Returns:
            Writes the copy. All ranks must call it, in any thread.
        """
        strategy = trainer.strategy
        with trainer.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            in_pieces = isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint
            if not in_pieces and not trainer.is_global_zero:
                return _write_nothing
            stager = DefaultStager(StagingOptions(False, False, False, False))
            copied: Any = stager.stage(checkpoint)
            stager.close()
        if not in_pieces:
            return partial(_write_file, strategy, copied, file)
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        values, rest = split_off_pieces(copied, trainer.is_global_zero)
        return partial(write_pieces, values, rest, file, self._group)

    def close(self) -> None:
        """Give the group back."""
        if self._group is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group(self._group)
        self._group = None


def _write_nothing() -> None:
    pass


def _write_file(strategy: Strategy, checkpoint: dict[str, Any], file: Path) -> None:
    strategy.checkpoint_io.save_checkpoint(checkpoint, file)
