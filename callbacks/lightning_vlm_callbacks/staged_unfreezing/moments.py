"""Whether the stages of a plan come at all in a run."""

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm_callbacks.run_length import (
    has_validation_data,
    steps_of_run,
    validations_ahead,
    why_no_validation,
)
from lightning_vlm_callbacks.staged_unfreezing.stages import Stage

__all__ = ["check_moments"]


def check_moments(trainer: Trainer, stages: Sequence[Stage], starts: Sequence[int | None]) -> None:
    """Refuse stages that wait for validations in a run without any; warn about stages that come too late.

    Args:
        trainer: Whose run begins.
        stages: The plan.
        starts: The first step of each stage, None where that isn't known yet.

    Raises:
        MisconfigurationException: A stage waits for a plateau, but no validation comes.
    """
    steps = steps_of_run(trainer)
    for number, start in enumerate(starts):
        if start is not None and start >= steps:
            rank_zero_warn(
                f"StagedUnfreezing: stage {number} would begin at step {start}, but the run has {steps:g}"
            )
    waiting = [
        stage.on_plateau.patience
        for stage, start in zip(stages, starts, strict=True)
        if stage.on_plateau is not None and start is None
    ]
    if not waiting:
        return
    if not has_validation_data(trainer):
        raise MisconfigurationException(
            f"on_plateau: found no validation in this run ({why_no_validation(trainer)}); expected some, "
            "after which a metric is looked at"
        )
    ahead = validations_ahead(trainer)
    if ahead <= min(waiting):
        rank_zero_warn(
            f"StagedUnfreezing: on_plateau with patience {min(waiting)} begins no stage in this run, which "
            f"validates {ahead:g} times"
        )
