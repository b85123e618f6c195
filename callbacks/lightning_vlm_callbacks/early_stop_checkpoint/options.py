"""Which options and runs EarlyStopCheckpoint refuses."""

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm_callbacks.requirements import require_known_strategy

__all__ = ["check_numbers", "check_options", "check_strategy"]


def check_strategy(trainer: Trainer, asynchronous: bool) -> None:
    """Refuse a run whose checkpoints can't be written as promised.

    Raises:
        MisconfigurationException: They are written by a plugin in the background, or by a strategy whose own
            way can't be put there.
    """
    if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
        raise MisconfigurationException(
            "EarlyStopCheckpoint: found AsyncCheckpointIO, which returns before a checkpoint is written, "
            "so that nothing says when it is whole; leave it out of the Trainer's plugins, and set "
            "asynchronous=True here"
        )
    if asynchronous:
        require_known_strategy("EarlyStopCheckpoint(asynchronous=True)", trainer.strategy)


def check_options(monitor: str | None, mode: str, patience: int | None, dirpath: str | None) -> None:
    """Refuse options that make no sense together.

    Raises:
        MisconfigurationException: With what to change.
    """
    if mode not in ("min", "max"):
        raise MisconfigurationException(f"EarlyStopCheckpoint: found mode {mode!r}; expected 'min' or 'max'")
    if patience is not None and monitor is None:
        raise MisconfigurationException(
            f"EarlyStopCheckpoint: found patience {patience} without a metric to wait for; set monitor"
        )
    if dirpath is not None and "://" in str(dirpath):
        raise MisconfigurationException(
            f"EarlyStopCheckpoint: found dirpath {dirpath}; expected a folder on a local or shared disk, "
            "where a file can be renamed and linked"
        )


def check_numbers(least: int, /, **numbers: float | None) -> None:
    """Refuse numbers below the least.

    Raises:
        MisconfigurationException: Names the option.
    """
    for name, value in numbers.items():
        if value is not None and value < least:
            raise MisconfigurationException(
                f"EarlyStopCheckpoint: found {name} {value}; expected at least {least}"
            )
