"""Follows the box loss of a module: finds the tokens that it is about, logs it, and says if it has none."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.data.batch.number_targets import find_number_targets
from lightning_vlm.data.boxes.number_tokens import NumberTokens, number_tokens
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.losses import batch_loss
from lightning_vlm.losses.box_loss import BoxLoss, BoxLosses
from lightning_vlm.losses.coordinates import Candidates

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


_ENOUGH = 50
"""After so many steps it is said that no coordinate has come."""


class BoxTerm(Callback):
    """Adds the box loss of a module to its cross-entropy, and logs it.

    `train/box_loss` is the loss itself, before its weight: a mean over the tokens of coordinates (with `iou`:
    over boxes) by their weights, on all ranks, since the log step before. `val/box_loss` and `test/box_loss`
    are the same of a validation or a test. For what is logged in training the host doesn't wait.

    Args:
        options: Which loss; None is none.
    """

    def __init__(self, options: BoxLoss | None = None) -> None:
        self.options = options
        self._tokens: dict[int, NumberTokens] | None = None
        self._candidates: dict[tuple[Any, ...], Candidates] = {}
        self._device = torch.device("cpu")
        self._since_log = torch.zeros(2)
        """The sum of weighted losses, and that of weights."""
        self._seen = torch.zeros(2)
        """In this fit: the sum of weights, and how many boxes were left out."""
        self._evaluated = torch.zeros(2)
        self._pending: tuple[int, HostCopy] | None = None
        self._of_epoch: HostCopy | None = None
        self._has_spoken = False

    def find_targets(self, module: "VLMModule", batch: Batch) -> Targets:
        """What is learned from a batch that is on the CPU, and which of it are tokens of coordinates."""
        targets = batch_loss.find_targets(batch, module.token_weights)
        if self.options is None or batch.coordinates is None:
            return targets
        if self._tokens is None:
            self._tokens = _tokens_of(module)
        ids = batch.inputs["input_ids"].flatten()
        numbers = find_number_targets(batch.coordinates, ids, targets.positions, self._tokens)
        return targets._replace(numbers=numbers)

    def of(self, model: PreTrainedModel, hidden: Tensor, targets: Targets) -> BoxLosses | None:
        """The box loss of a training batch, with a graph; None if it has none."""
        losses = self._losses(model, hidden, targets)
        if losses is None:
            return None
        sums = _sums(losses, targets)
        self._since_log = self._since_log.to(sums.device) + sums
        self._seen = self._seen.to(sums.device) + torch.stack((sums[1], torch.zeros_like(sums[1])))
        return losses

    def add_evaluated(self, model: PreTrainedModel, hidden: Tensor, targets: Targets) -> None:
        """Add the box loss of a batch of a validation or a test."""
        losses = self._losses(model, hidden, targets)
        if losses is not None:
            self._evaluated = self._evaluated.to(hidden.device) + _sums(losses, targets)

    def _losses(self, model: PreTrainedModel, hidden: Tensor, targets: Targets) -> BoxLosses | None:
        if self.options is None or self._tokens is None or targets.numbers is None:
            return None
        key = (*targets.numbers.kinds, hidden.device)
        if key not in self._candidates:
            self._candidates[key] = Candidates.of(self._tokens, targets.numbers.kinds).to(hidden.device)
        return batch_loss.target_box_losses(model, hidden, targets, self._candidates[key], self.options)

    @override
    def setup(self, trainer: Trainer, pl_module: "VLMModule", stage: str) -> None:  # type: ignore[override]
        self._tokens = None  # the data may be others, with another way to write boxes
        self._candidates = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self._since_log = torch.zeros(2, device=pl_module.device)
        self._seen = torch.zeros(2, device=pl_module.device)
        self._pending = self._of_epoch = None
        self._has_spoken = False
        if self.options is not None and not _tokens_of(pl_module):
            raise UserError(
                f"model.box_loss: found {self.options.kind}, but the model has no tokens of digits, nor of "
                "bins such as <loc_12>; leave it out, or add bins by model.new_tokens"
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.options is not None and batch.coordinates is not None:
            self._seen[1] += batch.coordinates.left_out

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if self.options is None:
            return
        self._write(trainer)
        if logs_at(trainer, trainer.global_step + 1):
            copy = HostCopy(_of_all_ranks(torch.cat((self._since_log, self._seen))))
            self._pending = (trainer.global_step, copy)
            self._since_log = torch.zeros_like(self._since_log)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.options is not None and not self._has_spoken:
            self._of_epoch = HostCopy(_of_all_ranks(self._seen))

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)  # a run that is killed and resumed here keeps it

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = torch.zeros(2, device=pl_module.device)

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = torch.zeros(2, device=pl_module.device)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_evaluated(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_evaluated(trainer, pl_module, "test")

    def _log_evaluated(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.options is None:
            return
        loss, weight = _of_all_ranks(self._evaluated).tolist()
        if weight:
            module.log(f"{stage}/box_loss", loss / weight, sync_dist=trainer.world_size > 1)

    def _write(self, trainer: Trainer) -> None:
        """Write what waits to be logged, and say what is to be said."""
        if self._of_epoch is not None and not self._has_spoken:
            self._say(*self._of_epoch.read().tolist())
        self._of_epoch = None
        if self._pending is None:
            return
        step, copy = self._pending
        self._pending = None
        loss, weight, seen, left_out = copy.read().tolist()
        if weight:
            log_metrics(trainer, {"train/box_loss": loss / weight}, step)
        if step + 1 >= _ENOUGH and not self._has_spoken:
            self._say(seen, left_out)

    def _say(self, seen: float, left_out: float) -> None:
        """Say once what the loss doesn't reach."""
        self._has_spoken = True
        why = "their numbers share tokens with other characters or with each other"
        if not seen and left_out:
            rank_zero_warn(
                f"model.box_loss does nothing: none of the {left_out:g} boxes so far can be used, for {why}"
            )
        elif not seen:
            rank_zero_warn(
                "model.box_loss does nothing: no answer so far has a box or a point that is learned and "
                "written in digits or bins; leave it out, or give boxes as boxes, not as text"
            )
        elif left_out:
            rank_zero_warn(f"model.box_loss: {left_out:g} boxes so far are left out, for {why}")


def _tokens_of(module: "VLMModule") -> dict[int, NumberTokens]:
    """The tokens that numbers are made of, of a module in a run or alone."""
    data = getattr(module._trainer, "datamodule", None)
    bins = data.renderer.boxes.codec.tokens if isinstance(data, VLMDataModule) else ()
    return number_tokens(module.processor.tokenizer, bins)


def _sums(losses: BoxLosses, targets: Targets) -> Tensor:
    """The sum of weighted losses, and that of weights: a Tensor of shape [2], float32."""
    assert targets.numbers is not None
    weights = targets.weights[targets.numbers.places] * losses.shares
    return torch.stack(((weights * losses.losses).sum(), weights.sum())).float()


def _of_all_ranks(sums: Tensor) -> Tensor:
    sums = sums.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums
