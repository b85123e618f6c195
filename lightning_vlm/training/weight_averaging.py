"""Lightning's WeightAveraging (EMA, SWA) beside a model that is mostly frozen."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning_vlm_callbacks import AdaptiveLoRARank
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_vlm.errors import UserError
from lightning_vlm.training.resume_changes import ended

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

CURRENT = "current_model_state"
"""Where Lightning's callback keeps the weights of training; under `state_dict` are then the averaged ones."""


class TrainedAverage(AveragedModel):
    """The average of the weights that train.

    Lightning averages all weights. For the frozen ones that takes the memory of the base model once more,
    puts them into every checkpoint, and changes them: 0.999 w + 0.001 w isn't w when it is rounded, and makes
    no sense of the codes of quantised weights.

    Buffers such as norm statistics are the model's own.

    Args:
        root: The module that trains.
        names: Of the parameters to average.
        like: The average as Lightning made it, which says how and on which device.
    """

    def __init__(self, root: nn.Module, names: Collection[str], like: AveragedModel) -> None:
        weights = _tree({name: weight for name, weight in root.named_parameters() if name in names})
        super().__init__(weights, like.n_averaged.device, like.avg_fn, like.multi_avg_fn)
        self._live = (weights,)  # in a tuple, so that it isn't part of this module
        self.swapped = False
        """Whether the model has the averaged weights now, and this has the model's."""
        self.before_end: dict[str, Tensor] | None = None
        """The weights of training, after the averaged ones have been copied over them at the end."""

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of the module that trains, unless its step was skipped: no gradient is left."""
        if self.n_averaged == 0 or any(weight.grad is not None for weight in self._live[0].parameters()):
            super().update_parameters(self._live[0])

    @torch.no_grad()
    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the averaged weights and those of the module that trains."""
        for average, current in zip(self.module.parameters(), self._live[0].parameters(), strict=True):
            kept = average.clone()
            average.copy_(current)
            current.copy_(kept)
        self.swapped = not self.swapped

    @torch.no_grad()
    def finish(self, pl_module: LightningModule) -> None:
        """Copy the averaged weights to the module that trains, at the end of training."""
        live = self._live[0]
        self.before_end = {name: current.clone() for name, current in live.named_parameters()}
        for average, current in zip(self.module.parameters(), live.parameters(), strict=True):
            current.copy_(average)


def _tree(weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module that has parameters under the names of another one's, and nothing else.

    >>> list(_tree({"head.bias": nn.Parameter(torch.zeros(1))}).state_dict())
    ['head.bias']
    """
    root = nn.Module()
    for name, weight in weights.items():
        *places, last = name.split(".")
        module = root
        for place in places:
            if place not in module._modules:
                module.add_module(place, nn.Module())
            module = module.get_submodule(place)
        module.register_parameter(last, weight)
    return root


def average_what_trains(trainer: Trainer, root: "VLMModule") -> None:
    """Let every WeightAveraging of a trainer average only what trains. Called at setup, after the callback's.

    Args:
        trainer: Whose callbacks are meant.
        root: The module that trains.

    Raises:
        UserError: A callback that can't work with a frozen base model, or with AdaptiveLoRARank.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise UserError(
            "StochasticWeightAveraging averages the frozen base model too and puts it into every checkpoint; "
            "use lightning.pytorch.callbacks.WeightAveraging, which averages what trains"
        )
    for callback in callbacks:
        if not isinstance(callback, WeightAveraging) or callback._average_model is None:
            continue
        if any(isinstance(other, AdaptiveLoRARank) for other in callbacks):
            raise UserError(
                f"{type(callback).__name__} beside AdaptiveLoRARank: weights whose shapes change have no "
                "average; leave out one of the two"
            )
        average = TrainedAverage(root, root.trained.names, callback._average_model)
        callback._average_model = average
        # Lightning's own version loops over all parameters, and loses the training weights at the end.
        callback._swap_models = average.swap  # type: ignore[method-assign]
        callback._copy_average_to_current = average.finish  # type: ignore[method-assign]


def save_averages(trainer: Trainer, checkpoint: dict[str, Any], names: Collection[str]) -> None:
    """Keep only what trains of both sets of weights; each is what its key says, whenever it is saved."""
    if CURRENT not in checkpoint:
        return
    current = {name: weight for name, weight in checkpoint[CURRENT].items() if name in names}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = callback._average_model if isinstance(callback, WeightAveraging) else None
        if isinstance(average, TrainedAverage):
            if average.before_end is not None:
                current = average.before_end
            if average.swapped:
                checkpoint["state_dict"], current = current, checkpoint["state_dict"]
    checkpoint[CURRENT] = current


def load_averages(trainer: Trainer | None, checkpoint: dict[str, Any], names: Collection[str]) -> None:
    """Before the weights of a checkpoint are loaded: choose which of the two sets the module gets."""
    if CURRENT not in checkpoint or trainer is None:
        return
    if trainer.state.fn != TrainerFn.FITTING or ended(trainer, checkpoint):
        # A module that isn't trained further gets the averaged weights, as at the end of a fit. The callback
        # would give it the training weights.
        checkpoint[CURRENT] = checkpoint["state_dict"]
        return
    checkpoint[CURRENT] = {name: weight for name, weight in checkpoint[CURRENT].items() if name in names}
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, WeightAveraging) for callback in callbacks):
        rank_zero_info(
            "The checkpoint has averaged weights, but the Trainer has no WeightAveraging now: training goes "
            "on from the weights that aren't averaged"
        )
        checkpoint["state_dict"] = checkpoint[CURRENT]


class FrozenWeightsWarning:
    """Says once which callback puts the frozen base model into every checkpoint."""

    def __init__(self) -> None:
        self._is_done = False

    def warn_once(self, checkpoint: Mapping[str, Any], frozen: Collection[str]) -> None:
        """Look at the first checkpoint that it is given. Arguments as for `frozen_weights_in`."""
        if self._is_done:
            return
        self._is_done = True
        for where, size in frozen_weights_in(checkpoint, frozen).items():
            rank_zero_warn(
                f"{where} puts {size / 2**20:,.1f} MiB of the frozen base model into every checkpoint; a "
                "callback that keeps weights should keep those that train, as WeightAveraging does here"
            )


def frozen_weights_in(checkpoint: Mapping[str, Any], frozen: Collection[str]) -> dict[str, int]:
    """Where a checkpoint holds weights of the frozen base model, and how many bytes of them.

    Args:
        checkpoint: With the state of callbacks, which may keep weights, such as averages of their own.
        frozen: Names of parameters; a state may have others before them, such as `module.`.

    >>> average = {"module.head.bias": torch.zeros(4), "n": 1}
    >>> frozen_weights_in({"callbacks": {"Average": {"weights": average}}}, {"head.bias"})
    {'callbacks.Average': 16}
    """
    found: dict[str, int] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((), checkpoint)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [((*place, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, Tensor):
            name = place[-1]
            names = {name, name.partition(".")[2], f"model.{name}"}
            if not names.isdisjoint(frozen):
                where = ".".join(place[:2]) if place[0] == "callbacks" else place[0]
                found[where] = found.get(where, 0) + value.nbytes
    return found
