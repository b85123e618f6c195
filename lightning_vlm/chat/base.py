"""Turns a tuned model into its base model for a while, and back."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel

_OF_ADAPTERS = (".lora_", ".ia3_")


class Switch:
    """Turns the adapters of PEFT off, and gives what trained in full the base model's values.

    Args:
        model: With adapters.
        kept: Values of the base model, by the names of parameters and buffers.
    """

    def __init__(self, model: PreTrainedModel, kept: Mapping[str, Tensor]) -> None:
        self._model = model
        self._kept = dict(kept)

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which the model is the base model."""
        self._turn(False)
        try:
            yield
        finally:
            self._turn(True)

    def _turn(self, on: bool) -> None:
        for module in self._model.modules():
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(on)
        own: dict[str, Any] = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        for name, other in self._kept.items():
            value = own[name]
            current = value.data
            value.data = other.to(current.device, current.dtype)
            self._kept[name] = current


def switch_of(model: PreTrainedModel, trained: Collection[str], buffers: Mapping[str, Tensor]) -> Switch:
    """What turns a model into its base model.

    Args:
        model: The adapted model, before trained weights are loaded.
        trained: Names of what trains, with the module's prefix `model.`.
        buffers: The buffers that change in training.
    """
    kept: dict[str, Tensor] = {}
    for name in trained:
        own = name.removeprefix("model.")
        if name.startswith("model.") and not any(key in own for key in _OF_ADAPTERS):
            kept[own] = model.get_parameter(own).detach().clone()
    for name, buffer in buffers.items():
        kept[name] = buffer.detach().clone()
    return Switch(model, kept)
