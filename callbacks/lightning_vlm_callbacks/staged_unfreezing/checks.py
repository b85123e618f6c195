"""Which runs can't be trained in stages, which stages never come, and what another callback shows of them."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LearningRateMonitor
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm_callbacks.requirements import require_full_gradients
from lightning_vlm_callbacks.run_length import (
    has_validation_data,
    steps_of_run,
    validations_ahead,
    why_no_validation,
)
from lightning_vlm_callbacks.staged_unfreezing.stages import Stage

__all__ = ["check_starts", "explain_learning_rate_monitor", "require_stages"]


def require_stages(trainer: Trainer, module: LightningModule) -> None:
    """Refuse at setup a run in which stages can't be right.

    Raises:
        MisconfigurationException: A strategy other than one device, DDP or FSDP2, manual optimization, or
            another callback that freezes.
    """
    require_full_gradients("StagedUnfreezing", trainer, module, needs_whole="")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning):
            raise MisconfigurationException(
                f"StagedUnfreezing: found {type(callback).__name__}, which freezes and unfreezes as well; "
                "leave one of the two out"
            )


def check_starts(trainer: Trainer, stages: Sequence[Stage], starts: Sequence[int | None]) -> None:
    """Warn about stages that begin after the run's end; refuse to wait for validations that never come.

    Args:
        trainer: Whose run begins.
        stages: All of them.
        starts: The first step of each stage, None where that isn't known yet.

    Raises:
        MisconfigurationException: A stage waits for a plateau, but nothing is validated.
    """
    steps = steps_of_run(trainer)
    for number, start in enumerate(starts):
        if start is not None and start >= steps:
            rank_zero_warn(
                f"StagedUnfreezing: stage {number} would begin at step {start}, but the run has {int(steps)}"
            )
    patience = [
        stage.on_plateau.patience
        for stage, start in zip(stages, starts, strict=True)
        if stage.on_plateau is not None and start is None
    ]
    if patience:
        _check_validations(trainer, min(patience))


def _check_validations(trainer: Trainer, patience: int) -> None:
    if not has_validation_data(trainer):
        raise MisconfigurationException(
            f"on_plateau: found no validation in this run ({why_no_validation(trainer)}); expected some, "
            "after which a metric is judged"
        )
    ahead = validations_ahead(trainer)
    if ahead <= patience:
        rank_zero_warn(
            f"StagedUnfreezing: on_plateau with patience {patience} begins no stage in this run, which "
            f"validates {ahead:g} times"
        )


def explain_learning_rate_monitor(trainer: Trainer) -> None:
    """Say what Lightning's monitor shows, which reads the optimizer's groups between steps."""
    if any(isinstance(callback, LearningRateMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        rank_zero_warn(
            "StagedUnfreezing: LearningRateMonitor shows the rates of the schedule, without the scales of "
            "stages; the rates in force are logged as lr/..., by group and selector"
        )
