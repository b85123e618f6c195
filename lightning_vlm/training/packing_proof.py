"""The proof, before a run's first step, that packing changes nothing in the user's own model and data."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.models.sharding import is_sharded
from lightning_vlm.training.packed_and_alone import prove
from lightning_vlm.training.packing_verdict import Verdict

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

MOST_SAMPLES = 4
"""How many samples the proof takes."""
BATCHES_TO_TRY = 20
"""In how many of the first batches two samples that share a row are looked for."""


class PackingProof(Callback):
    """Proves packing once, on samples of the first batch, and says so in one line; see `prove`."""

    def __init__(self) -> None:
        self._is_done = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self.prove(trainer, pl_module)

    def start_stage(self) -> None:
        """Count what comes as unproved: a stage has data and batches of its own."""
        self._is_done = False

    def prove(self, trainer: Trainer, pl_module: "VLMModule") -> None:
        """Prove packing unless that is done, or there is nothing packed."""
        data = getattr(trainer.train_dataloader, "dataset", None)
        if self._is_done or not isinstance(data, RenderedBatches) or not data.packs:
            return
        self._is_done = True
        if is_sharded(pl_module):
            rank_zero_info(
                "Packing is not proved where the model is cut into pieces; a fit on one device proves it"
            )
            return
        try:
            found = self._prove(trainer, pl_module, data)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rank_zero_warn("Packing is not proved: there is not enough memory for a few samples of a batch")
            return
        if found is None:
            rank_zero_info("Packing has nothing to prove: no two samples share one of the first batches")
            return
        found.check()
        rank_zero_info(found.in_words())

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if not self._is_done and batch.is_packed:
            self._is_done = True
            rank_zero_warn("Packing is not proved: its batches don't come from a VLMDataModule")

    def _prove(self, trainer: Trainer, module: "VLMModule", data: RenderedBatches) -> Verdict | None:
        """All ranks take the samples of the first, so that all come to the same end."""
        units = first_samples(trainer.train_dataloader.sampler)  # type: ignore[union-attr]
        for unit in trainer.strategy.broadcast(units):
            alone = []
            usable = []
            for index in unit:
                batch = self._prepared(trainer, module, data[[index]])
                if batch.targets is not None and len(batch.targets.positions):
                    alone.append(batch)
                    usable.append(index)
                if len(alone) == MOST_SAMPLES:
                    break
            if len(alone) > 1:
                packed = self._prepared(trainer, module, data[usable])
                with trainer.precision_plugin.forward_context():
                    return prove(module, packed, alone)
        return None

    def _prepared(self, trainer: Trainer, module: "VLMModule", batch: Batch) -> Batch:
        """What a training step would get."""
        batch = trainer.precision_plugin.convert_input(batch)
        batch = batch._replace(targets=module.targets(batch))
        return move_data_to_device(batch, module.device)


def first_samples(sampler: Any) -> list[list[int]]:
    """The samples of the first batches in which there are several, without those that only fill them up."""
    units = []
    for number, unit in enumerate(sampler):
        samples = [index for index in unit if index >= 0]
        if len(samples) > 1:
            units.append(samples)
        if number + 1 == BATCHES_TO_TRY:
            break
    return units
