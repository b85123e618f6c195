"""The callback that says which attention a fit uses, and checks it on the first batch."""

from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vlm.models.attention.check import check_attention
from lightning_vlm.models.attention.families import attention_line
from lightning_vlm.models.attention.kernel import KERNEL_DTYPES, compute_dtype
from lightning_vlm.models.sharding import is_sharded


class VarlenAttentionCheck(Callback):
    """Says which attention is used where, and checks a flash attention on the first batch of a fit.

    Args:
        devices: Where a kernel is at work that has to be checked. On a CPU the exact loop stands for it.
    """

    def __init__(self, devices: Collection[str] = ("cuda",)) -> None:
        self._devices = set(devices)
        self._is_done = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        batching = getattr(trainer.datamodule, "batching", None)  # type: ignore[attr-defined]
        packs = getattr(batching, "packs", False)
        if packs or trainer.strategy.root_device.type in self._devices:
            rank_zero_info(attention_line(pl_module.model))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._is_done or not batch.lengths or pl_module.device.type not in self._devices:
            return
        self._is_done = True
        if is_sharded(pl_module):  # processes without a sample would leave it out, and the others wait
            rank_zero_info("Attention is not checked where the model is cut into pieces; on one device it is")
            return
        with trainer.precision_plugin.forward_context():
            self._check(pl_module, batch)

    def _check(self, pl_module: Any, batch: Any) -> None:
        model = pl_module.model
        weight = model.get_input_embeddings().weight
        if weight.is_cuda and compute_dtype(weight) not in KERNEL_DTYPES:
            return  # no kernel is at work
        try:
            distances = check_attention(model, lambda: pl_module.hidden_states(batch), batch.lengths)
        except torch.OutOfMemoryError:
            rank_zero_info("Attention: not checked, as the first batch doesn't fit with sdpa")
            return
        if distances is None:
            return
        said = []
        if distances.tower is not None:
            said.append(f"the vision tower is {distances.tower:.2%} from sdpa")
        if distances.language is not None:
            said.append(f"the language model is {distances.language:.2%} from {distances.reference}")
        rank_zero_info(f"Attention, checked on the first batch: {', '.join(said)}")
