"""What several callbacks need of a run: whole gradients on each rank, and steps that can be told."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

__all__ = ["need_whole_steps"]


def need_whole_steps(who: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuse at setup what would be silently wrong.

    Args:
        who: The callback that needs it.
        trainer: Whose run it is.
        module: That it trains.

    Raises:
        MisconfigurationException: A strategy other than one device or DDP, or manual optimization.
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or isinstance(strategy, DeepSpeedStrategy):  # which is a DDPStrategy by name only
        raise MisconfigurationException(
            f"{who}: found strategy {type(strategy).__name__}, with which no rank may have whole parameters "
            "and gradients; expected one device or DDP"
        )
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{who}: found manual optimization, where a batch may have several steps, clipped anywhere; "
            "expected automatic_optimization = True"
        )
