"""How the Trainer counts the steps that it logs."""

from lightning.pytorch import Trainer

__all__ = ["logged_step", "steps_made"]


def logged_step(trainer: Trainer) -> int:
    """The number under which the Trainer logs the step that is being made, from 0 on.

    With several optimizers it isn't `global_step`, and Lightning has no public name for it.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def steps_made(trainer: Trainer) -> int:
    """How many steps have been made, counted as the Trainer logs them.

    Lightning counts a step only at the very end of its batch, when it may be in a checkpoint already.
    """
    return min(trainer.global_step, logged_step(trainer) + 1)
