"""The train and eval modes of a model during a fit."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks.modes import hold_modes, release_modes
from torch import nn
from typing_extensions import override


class FitModes(Callback):
    """Keeps what trains in train mode and what is frozen in eval mode, whatever has changed either.

    transformers loads all in eval mode, projects call `train()` or `eval()`, and callbacks freeze.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> modes = FitModes()
    >>> modes.start_fit(model)
    >>> _ = model[1].requires_grad_(False)
    >>> modes.keep()
    >>> [child.training for child in model.train()]
    [True, False]
    >>> modes.end_fit()
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._may_train: list[nn.Parameter] = []
        self._trained: list[bool] | None = None  # which of them trained when modes were last set
        self._in_training: list[nn.Module] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start_fit(pl_module.model)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end_fit()

    def start_fit(self, model: nn.Module) -> None:
        """Begin with what trains now. From now on callbacks may freeze some of it for a while."""
        self._model = model
        self._may_train = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._trained = None

    def keep(self) -> None:
        """Set modes again if what trains has changed, or if something that trains has left train mode."""
        if self._model is None:  # a tuner's trial comes before the start of the fit
            return
        trained = [parameter.requires_grad for parameter in self._may_train]
        if trained == self._trained and all(module.training for module in self._in_training):
            return
        hold_modes(self._model)
        self._trained = trained
        self._in_training = [module for module in self._model.modules() if module.training]

    def end_fit(self) -> None:
        """Let `train()` work on frozen modules again."""
        if self._model is None:
            return
        release_modes(self._model)
        self._trained = None
