"""What happens between the gradients and the weights: parameter groups, clipping, learning rate schedules.

Import from here, and write `lightning_vlm.optim.Cosine` (or just `Cosine`) in configs.
"""

from lightning_vlm.optim.clipping import clip_gradients, clip_groups
from lightning_vlm.optim.groups import parameter_groups
from lightning_vlm.optim.optimizer_check import check_optimization, rate_of
from lightning_vlm.optim.schedules import (
    Constant,
    Cosine,
    Linear,
    Schedule,
    ThreePhase,
    lr_lambda,
    settle_rates,
)
from lightning_vlm.optim.trainer_schedule import TrainerSchedule

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "Schedule",
    "ThreePhase",
    "TrainerSchedule",
    "check_optimization",
    "clip_gradients",
    "clip_groups",
    "lr_lambda",
    "parameter_groups",
    "rate_of",
    "settle_rates",
]
