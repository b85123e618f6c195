"""Names the samples that make the loss of a validation or a test NaN or infinite."""

import torch
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_vlm.data.batch.collate import Batch

_MAX_NAMES = 5


class FiniteScores:
    """Which samples had a loss that is finite; nothing is read from the device until that is asked for."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a validation or a test."""
        self._sources: list[str] = []
        self._are_finite: list[Tensor] = []

    def add(self, batch: Batch, rows: Tensor | None) -> None:
        """Add a batch, and what `Scores.add_losses` has returned for it."""
        if rows is not None:
            self._sources += batch.sources
            self._are_finite.append(rows.isfinite().all(1))

    def warn(self, trainer: Trainer, stage: str, loss: float) -> None:
        """Say which samples they are. Every rank must call it.

        Args:
            trainer: That validates or tests.
            stage: `val` or `test`.
            loss: NaN or infinite.
        """
        flags = torch.cat(self._are_finite).tolist() if self._are_finite else []
        bad = [source for source, is_finite in zip(self._sources, flags, strict=True) if not is_finite]
        found = [(len(flags), bad)]
        if trainer.world_size > 1:
            found *= trainer.world_size
            torch.distributed.all_gather_object(found, (len(flags), bad))
        total = sum(count for count, _ in found)
        names = [name for _, of_rank in found for name in of_rank]
        if len(names) == total > 1:
            where = f"all {total} samples, so the weights may hold NaN or infinity"
        else:
            more = ", ..." if len(names) > _MAX_NAMES else ""
            where = f"{len(names)} of {total} samples: {', '.join(names[:_MAX_NAMES])}{more}"
        rank_zero_warn(f"{stage}/loss is {loss}, as the loss isn't finite in {where}")
