"""Fine-tune vision-language models with PyTorch Lightning, right to the token.

The public classes are imported when first asked for, so that `lightning-vlm --help` stays fast.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import lightning_vlm_callbacks  # noqa: F401  # before Lightning, as it makes torchvision importable for it

from lightning_vlm.compat import quiet

if TYPE_CHECKING:
    from lightning_vlm.callbacks.answer_writer import AnswerWriter
    from lightning_vlm.callbacks.prediction_table import PredictionTable
    from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling
    from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
    from lightning_vlm.callbacks.visual_gain_weights import VisualGainWeights
    from lightning_vlm.data.datamodule import VLMDataModule
    from lightning_vlm.data.stages.settings import StageData
    from lightning_vlm.models.family_hooks import FamilyHooks
    from lightning_vlm.models.logits import LogitOptions
    from lightning_vlm.module import VLMModule
    from lightning_vlm.training.stages.stage import Stage

__all__ = [
    "AnswerWriter",
    "FamilyHooks",
    "LogitOptions",
    "PredictionTable",
    "ScheduledSampling",
    "Stage",
    "StageData",
    "TokenWeightSchedule",
    "VLMDataModule",
    "VLMModule",
    "VisualGainWeights",
]
__version__ = "0.1.0"

_MODULES = {
    "AnswerWriter": "callbacks.answer_writer",
    "PredictionTable": "callbacks.prediction_table",
    "ScheduledSampling": "callbacks.scheduled_sampling",
    "TokenWeightSchedule": "callbacks.token_weight_schedule",
    "VisualGainWeights": "callbacks.visual_gain_weights",
    "Stage": "training.stages.stage",
    "StageData": "data.stages.settings",
    "FamilyHooks": "models.family_hooks",
    "LogitOptions": "models.logits",
    "VLMDataModule": "data.datamodule",
    "VLMModule": "module",
}
"""Public name -> the module that it is in."""

quiet.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        problem = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(problem, name=name, obj=sys.modules[__name__])  # so that Python says the nearest
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
