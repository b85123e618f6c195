"""Logs the learning rates of a fit."""

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning_vlm_callbacks import StagedUnfreezing
from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch.optim import Optimizer
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class LearningRates(Callback):
    """Logs the rates that a step is made with as `lr/<group>`; a StagedUnfreezing does that for itself."""

    @override
    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "VLMModule", optimizer: Optimizer
    ) -> None:
        if not trainer.loggers or not logs_at(trainer, trainer.global_step + 1):
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, StagedUnfreezing) for callback in callbacks):
            log_metrics(trainer, rates_in_force([optimizer]), trainer.global_step)
