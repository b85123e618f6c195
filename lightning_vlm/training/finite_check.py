"""Says that a run has met NaN or infinity where no NonFiniteGuard does."""

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks import NonFiniteGuard
from lightning_vlm_callbacks.finite_state import what_is_not_finite
from lightning_vlm_callbacks.run_report import record_event
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class FiniteCheck(Callback):
    """Looks at the loss of each step, a step later, so that the host doesn't wait for the device; and at
    weights and the state of the optimizer when they are saved and when training ends.

    It changes nothing. A NonFiniteGuard skips such steps and says more, so beside one this does nothing.
    """

    def __init__(self) -> None:
        self._is_on = False
        self._said: set[str] = set()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._is_on = not any(isinstance(callback, NonFiniteGuard) for callback in callbacks)
        self._said = set()

    def see_loss(self, trainer: Trainer, step: int, loss: float) -> None:
        """Look at the loss of a step. All ranks have the same."""
        if self._is_on and not math.isfinite(loss):
            self._say(trainer, "loss", f"train/loss is {loss} at step {step}, which was trained on", step)

    @override
    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "VLMModule", checkpoint: dict[str, Any]
    ) -> None:
        self._look_at_weights(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self._look_at_weights(trainer)

    def _look_at_weights(self, trainer: Trainer) -> None:
        what = what_is_not_finite(trainer) if self._is_on and "weights" not in self._said else ""
        if what:
            self._say(trainer, "weights", what, trainer.global_step)

    def _say(self, trainer: Trainer, kind: str, what: str, step: int) -> None:
        """Warn of each kind once, and name the remedy with the first."""
        if kind in self._said:
            return
        record_event(trainer, "anomaly", what, step)
        if not self._said:
            what += (
                "; add NonFiniteGuard to trainer.callbacks, which skips such steps and names the module "
                "and the samples"
            )
        self._said.add(kind)
        rank_zero_warn(what)
