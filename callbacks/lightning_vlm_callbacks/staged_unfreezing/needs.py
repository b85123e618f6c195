"""Which runs can't be trained in stages, and which other callbacks need a warning."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LearningRateMonitor
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["explain_learning_rate_monitor", "need_stages"]


def need_stages(trainer: Trainer, module: LightningModule) -> None:
    """Refuse at setup what stages can't be right with.

    Raises:
        MisconfigurationException: A strategy other than one device or DDP, manual optimization, or another
            callback that freezes.
    """
    _need_renewable(trainer.strategy)
    if not module.automatic_optimization:
        raise MisconfigurationException(
            "StagedUnfreezing: found manual optimization, in which toggle_optimizer freezes and unfreezes as "
            "well, and a batch may have several steps; expected automatic_optimization = True"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning):
            raise MisconfigurationException(
                f"StagedUnfreezing: found {type(callback).__name__}, which freezes and unfreezes as well; "
                "leave one of the two out"
            )


def _need_renewable(strategy: Strategy) -> None:
    """Only where parameters are whole, and the wrapper can be renewed."""
    name = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy):
        why = "DeepSpeed has copies of the trained weights in its own optimizer, made once"
    elif isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return
    else:
        why = "what a shard holds and synchronises is settled when the model is split, with what trains then"
    raise MisconfigurationException(f"found trainer.strategy {name}: {why}; choose ddp or one device")


def explain_learning_rate_monitor(trainer: Trainer) -> None:
    """Say what Lightning's monitor shows, which reads the optimizer's groups between steps."""
    if any(isinstance(callback, LearningRateMonitor) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        rank_zero_warn(
            "StagedUnfreezing: LearningRateMonitor shows the rates of the schedule, without the scales of "
            "stages; the rates in force are logged as lr/..., by group and selector"
        )
