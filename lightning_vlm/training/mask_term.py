"""The mask head of a module in a run: made, checked against the data, its loss added and logged."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.data.batch.masks import Masks
from lightning_vlm.data.boxes.segments import SEG, Segments
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import MaskLosses, zero_loss
from lightning_vlm.losses.mask_terms import mask_losses, weights_at
from lightning_vlm.models.mask_head import MaskHead, MaskOptions, make_mask_head

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class MaskTerm(Callback):
    """Adds the loss of masks to the cross-entropy of a module, each at its token, by that token's weight.

    `train/mask_loss` is its mean over masks by these weights, on all ranks since the last log step;
    `val/mask_loss` and `test/mask_loss` are those of a validation or a test.

    Args:
        options: The head and its loss; None is no head.
    """

    def __init__(self, options: MaskOptions | None = None) -> None:
        self.options = options
        self._head: MaskHead | None = None
        self._sums = torch.zeros(2)
        """The sum of weighted losses, and that of weights."""
        self._evaluated = torch.zeros(2)
        self._pending: tuple[int, HostCopy] | None = None

    def make(self, model: PreTrainedModel) -> MaskHead | None:
        """The head of a model, if there is to be one."""
        self._head = make_mask_head(model, self.options) if self.options is not None else None
        return self._head

    def of(self, hidden: Tensor, batch: Batch, targets: Targets) -> MaskLosses | None:
        """The losses of the masks of a training batch; None where there is no head.

        Args:
            hidden: Tensor of shape [rows, length, hidden], as from `last_hidden_states`.
            batch: On the same device.
            targets: What is learned from it.
        """
        if self._head is None or self.options is None:
            return None
        masks = batch.masks
        if masks is None:  # DDP would wait for gradients otherwise
            nothing = targets.positions[:0]
            return MaskLosses(zero_loss(self._head.parameters()).expand(0), targets.weights[:0], nothing)
        losses, weights = self._losses(hidden, batch, targets, masks)
        self._sums = self._sums.to(losses.device, non_blocking=True) + _sums(losses, weights)
        return MaskLosses(losses, weights, batch.samples.flatten().index_select(0, masks.positions).long())

    def add_evaluated(self, hidden: Tensor, batch: Batch, targets: Targets) -> None:
        """Add the losses of the masks of a batch of a validation or a test; arguments as in `of`."""
        if self._head is not None and batch.masks is not None:
            sums = _sums(*self._losses(hidden, batch, targets, batch.masks))
            self._evaluated = self._evaluated.to(sums.device) + sums

    def _losses(self, hidden: Tensor, batch: Batch, targets: Targets, masks: Masks) -> tuple[Tensor, Tensor]:
        """The loss and the weight of each mask."""
        assert self._head is not None
        assert self.options is not None
        options = self.options
        logits = self._head(hidden, masks)
        losses = mask_losses(
            logits, masks.targets, masks.is_box, options.bce, options.dice, options.consistency
        )
        size = batch.samples.numel()
        weights = weights_at(targets.positions, targets.weights, masks.positions, size)
        return losses, weights.to(losses.dtype)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, VLMDataModule):
            return
        has_masks = isinstance(data.renderer.boxes.codec, Segments)
        if has_masks and self.options is None:
            raise UserError(
                f"data.boxes: seg writes {SEG} where a mask should be made; set model.mask_head, or choose "
                "another codec"
            )
        generation = getattr(pl_module, "generation", None) or {}
        if has_masks and generation.get("num_return_sequences", 1) > 1:
            raise UserError(
                "model.mask_head: found model.generation with num_return_sequences, but masks are of "
                "one answer; leave num_return_sequences out"
            )
        if self.options is not None and not has_masks:
            raise UserError(
                f"model.mask_head: found data.boxes {data.renderer.boxes.codec.name}, which has no masks; "
                "expected data.boxes: seg"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self._sums = torch.zeros(2)
        self._pending = None

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if self.options is None:
            return
        self._write(trainer)
        if logs_at(trainer, trainer.global_step + 1):
            sums, self._sums = _of_all_ranks(trainer, self._sums), torch.zeros(2)
            self._pending = trainer.global_step, HostCopy(sums)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = torch.zeros(2)

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = torch.zeros(2)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_evaluated(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_evaluated(trainer, pl_module, "test")

    def _log_evaluated(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.options is None:
            return
        loss, weight = _of_all_ranks(trainer, self._evaluated).tolist()
        if weight:
            module.log(f"{stage}/mask_loss", loss / weight, sync_dist=trainer.world_size > 1)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)  # a run that is killed and resumed here keeps it

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Write what waits to be logged."""
        if self._pending is None:
            return
        step, copy = self._pending
        self._pending = None
        loss, weight = copy.read().tolist()
        if weight:
            log_metrics(trainer, {"train/mask_loss": loss / weight}, step)


def _sums(losses: Tensor, weights: Tensor) -> Tensor:
    """The sum of weighted losses, and that of weights: a Tensor of shape [2], float32."""
    return torch.stack(((weights * losses.detach()).sum(), weights.sum())).float()


def _of_all_ranks(trainer: Trainer, sums: Tensor) -> Tensor:
    if trainer.world_size == 1:
        return sums
    sums = sums.to(trainer.strategy.root_device, copy=True)
    torch.distributed.all_reduce(sums)
    return sums
