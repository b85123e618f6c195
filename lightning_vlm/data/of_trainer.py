"""What a data module takes from the module that its Trainer runs."""

from typing import Any

from lightning.pytorch import Trainer
from transformers import PreTrainedModel, ProcessorMixin


def processor_of(trainer: Trainer | None) -> ProcessorMixin | None:
    """The processor of the module, if it has one."""
    return _of_module(trainer, "processor")


def model_of(trainer: Trainer | None) -> PreTrainedModel | None:
    """The model inside the module, if it has one."""
    return _of_module(trainer, "model")


def generates(trainer: Trainer | None) -> bool:
    """Whether the module answers prompts in validation and test."""
    return bool(_of_module(trainer, "generation"))


def _of_module(trainer: Trainer | None, name: str) -> Any:
    return getattr(trainer.lightning_module, name, None) if trainer else None
