"""Facts about the run of a Trainer that several callbacks need."""

from lightning.pytorch import Trainer

__all__ = ["logs_at"]


def logs_at(trainer: Trainer, step: int) -> bool:
    """Whether a Trainer logs at a step, as its own `self.log(..., on_step=True)` does.

    Args:
        trainer: `Trainer(barebones=True)` and `log_every_n_steps=0` log at no step.
        step: The number of optimizer steps made, counted so that the caller's first logged value is at a
            multiple of `log_every_n_steps`. In `on_before_optimizer_step` the step that ends there is
            `trainer.global_step + 1`.

    >>> trainer = Trainer(log_every_n_steps=2, logger=False, accelerator="cpu")
    >>> [step for step in range(5) if logs_at(trainer, step)]
    [0, 2, 4]
    >>> logs_at(Trainer(barebones=True, accelerator="cpu"), 0)
    False
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0
