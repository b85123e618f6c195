"""What is said after Ctrl-C: how far the run came, and what was saved."""

import os

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def after_interrupt(trainer: Trainer) -> str:
    """One line: where the run stopped, the newest checkpoint, and how to go on from it."""
    if trainer.state.fn != TrainerFn.FITTING:
        return "stopped by Ctrl-C"
    found = {
        path
        for callback in trainer.checkpoint_callbacks
        for name in ("last_model_path", "best_model_path")
        if (path := getattr(callback, name, "")) and os.path.exists(path)
    }
    stopped = f"stopped by Ctrl-C after {trainer.global_step:,} steps"
    if not found:
        return f"{stopped}; no checkpoint was saved"
    newest = max(found, key=os.path.getmtime)
    return f"{stopped}; the newest checkpoint is {newest}; go on from it with --ckpt_path {newest}"
