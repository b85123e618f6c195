"""The message after Ctrl-C or SIGTERM: how far the run came, and what was saved."""

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_vlm_callbacks.checkpoint_files import newness

from lightning_vlm.counted import counted
from lightning_vlm.errors import Interrupted
from lightning_vlm.outputs.run_files import checkpoints_of


def interruption(error: SystemExit, trainer: Trainer) -> Interrupted | None:
    """What stopped a run that Lightning ended with `SystemExit`; None where nothing from outside did.

    Lightning ends with 1 after Ctrl-C, and with 0 after SIGTERM, as if the run had been completed.
    """
    if isinstance(error, SIGTERMException):
        return Interrupted(_saved("SIGTERM", trainer), 143)
    if isinstance(error.__context__, KeyboardInterrupt):
        return Interrupted(_saved("Ctrl-C", trainer), 130)
    return None


def _saved(by: str, trainer: Trainer) -> str:
    """One line: where the run stopped, the newest checkpoint, and how to continue from it."""
    if trainer.state.fn != TrainerFn.FITTING:
        return f"stopped by {by}"
    stopped = f"stopped by {by} after {counted(trainer.global_step, 'step')}"
    checkpoints = checkpoints_of(trainer)
    if not checkpoints:
        return f"{stopped}; no checkpoint was saved"
    newest = max(checkpoints, key=newness)
    return f"{stopped}; the newest checkpoint is {newest}; continue with --ckpt_path {newest}"
