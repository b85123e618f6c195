"""What a batch was that ran out of memory."""

import re
import resource
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.batch.lengths import patch_of, patches_of
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.kinds import Kind
from lightning_vlm.training.memory.decide import gib

LONGEST = 3
"""So many samples of the batch are named."""


class OutOfMemoryNote(Callback):
    """Adds a note to an `OutOfMemoryError` of training: which batch it was, and what it took.

    The error stays what it is, for callers that catch it. The command shows the note, and so does Python
    below a traceback.
    """

    def __init__(self) -> None:
        self._batch: tuple[int, Batch] | None = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._batch = (batch_idx, batch)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        batch = self._batch
        self._batch = None
        if batch is None or not is_out_of_memory(exception):
            return
        lines = [f"in training batch {batch[0]}: {_size(pl_module, batch[1])}; {_peak(pl_module.device)}"]
        lines += [_longest(batch[1]), _fixes(getattr(trainer, "datamodule", None))]
        notes = vars(exception).setdefault(NOTES, [])
        notes.append("\n".join(lines))


NOTES = "__notes__"
"""Where Python looks for notes, from version 3.11 on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return re.search("can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", str(error)) is not None


def _size(module: Any, batch: Batch) -> str:
    patches = patches_of(batch.inputs, patch_of(module.processor, module.model))
    places = batch.inputs["input_ids"].numel()
    padding = f" ({places - batch.tokens:,} of padding beside them)" if places > batch.tokens else ""
    return f"{len(batch.sources)} samples, {batch.tokens:,} tokens{padding}, {patches:,} patches"


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{gib(torch.cuda.max_memory_allocated(device))} were in use at most"
    return f"the process took {gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} at most"


def _longest(batch: Batch) -> str:
    samples = batch.samples.cpu()[batch.kinds.cpu() != Kind.PAD]
    lengths = samples.bincount(minlength=len(batch.sources)).tolist()
    order = sorted(range(len(batch.sources)), key=lambda sample: -lengths[sample])[:LONGEST]
    named = ", ".join(f"{batch.sources[sample]} ({lengths[sample]:,} tokens)" for sample in order)
    return f"its longest samples are {named}"


def _fixes(data: object) -> str:
    fixes = "set model.gradient_checkpointing: true or model.adapt: qlora"
    if not isinstance(data, VLMDataModule):
        return fixes
    if data.batching.by_tokens:
        return f"lower data.max_tokens (now {data.batching.max_tokens:,}) or data.max_length, or {fixes}"
    less = "lower data.max_length"
    if data.batch_size > 1:
        less += f" or data.batch_size (now {data.batch_size}; raise trainer.accumulate_grad_batches as much)"
    return f"{less}, or {fixes}"
