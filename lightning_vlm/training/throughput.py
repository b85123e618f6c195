"""How the batches of a VLMModule are counted for a ThroughputMonitor."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lightning_vlm_callbacks import BatchCounter, Counts
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.models.operations import OperationCounter
from lightning_vlm.models.sharding import is_sharded


class VLMBatchCounter(BatchCounter):
    """Counts samples, tokens and operations by numbers that the batch carries on the host.

    Args:
        model: In a fit, adapted.
        context: What its forward runs in, such as autocast.
    """

    def __init__(
        self, model: PreTrainedModel, context: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        self._operations = OperationCounter(model, context)
        self._is_sharded = is_sharded(model)
        self._has_targets = True

    @override
    def count(self, batch: Batch) -> Counts:
        tokens = sum(batch.lengths)
        return Counts(
            samples=len(batch.lengths),
            tokens=tokens,
            learned=None if batch.targets is None else len(batch.targets.positions),
            padding=batch.inputs["input_ids"].numel() - tokens,
        )

    @override
    def operations(self, batch: Batch) -> float | None:
        self._has_targets = batch.targets is not None
        if batch.targets is None or self._is_sharded:
            return None
        targets = len(batch.targets.positions)
        return self._operations.count(batch.lengths, batch.pictures, targets, batch.inputs)

    @property
    @override
    def no_operations(self) -> str:
        if self._is_sharded:
            return "operations are counted by trial runs of a whole model, and this one is in pieces"
        if not self._has_targets:
            return "batches come without targets, as VLMDataModule gives them"
        return self._operations.why
