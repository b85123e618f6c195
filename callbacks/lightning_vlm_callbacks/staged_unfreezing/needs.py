"""Which runs can't be trained in stages, and which other callbacks need a warning."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm_callbacks.requirements import require_full_gradients

__all__ = ["explain_learning_rate_monitor", "need_stages"]


def need_stages(trainer: Trainer, module: LightningModule) -> None:
    """Refuse at setup what stages can't be right with.

    Raises:
        MisconfigurationException: A strategy other than one device or DDP, manual optimization, or another
            callback that freezes.
    """
    require_full_gradients("StagedUnfreezing", trainer, module)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning):
            raise MisconfigurationException(
                f"StagedUnfreezing: found {type(callback).__name__}, which freezes and unfreezes as well; "
                "leave one of the two out"
            )


def explain_learning_rate_monitor(trainer: Trainer) -> None:
    """Say what Lightning's monitor shows, which reads the optimizer's groups between steps."""
    if any(isinstance(callback, LearningRateMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        rank_zero_warn(
            "StagedUnfreezing: LearningRateMonitor shows the rates of the schedule, without the scales of "
            "stages; the rates in force are logged as lr/..., by group and selector"
        )
