"""One fit in stages: what trains now, since when and at which scale."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_vlm_callbacks.staged_unfreezing.entries import StageEntry, scales_by_selector
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates
from lightning_vlm_callbacks.staged_unfreezing.stages import trains_since, warm_up

__all__ = ["StagedRun"]


@dataclass
class StagedRun:
    """What holds during one fit, and what it changes in the module and its optimizers."""

    step: int = 0
    """The optimizer step that the last batch was for."""
    stage: int = 0
    starts: list[int | None] = field(default_factory=list)
    """The first step of each stage, None where a metric hasn't decided yet."""
    may_train: dict[str, Parameter] = field(default_factory=dict)
    """The parameters that required gradients when the fit began."""
    modes: dict[nn.Module, bool] = field(default_factory=dict)
    """Which modules were in train mode when the fit began."""
    entries: list[list[StageEntry]] = field(default_factory=list)
    """Of each stage."""
    scales: list[dict[Parameter, float]] = field(default_factory=list)
    """Of each stage."""
    since: dict[Parameter, int | None] = field(default_factory=dict)
    """The step since which each parameter of this stage has trained."""
    rates: ScaledRates | None = None
    warmup_steps: int = 0
    validated: bool = False
    logged: int = -1
    """The step whose learning rates were logged last."""

    def require_in_optimizers(self, rates: Mapping[Parameter, float]) -> None:
        """Refuse stages whose parameters no optimizer has.

        Args:
            rates: The learning rate of each parameter in an optimizer.
        """
        staged = set().union(*self.scales)
        missing = [name for name, one in self.may_train.items() if one in staged and one not in rates]
        if missing:
            raise MisconfigurationException(
                f"stages: found {missing[0]} and {len(missing) - 1} more in no optimizer; expected "
                "configure_optimizers to give it all parameters that require gradients"
            )

    def enter(self, stage: int, step: int) -> bool:
        """Let what a stage trains require gradients, and nothing else.

        Returns:
            Whether other parameters train than before.
        """
        self.stage = stage
        trains = self.scales[stage]
        changed = False
        for parameter in self.may_train.values():
            changed |= parameter.requires_grad != (parameter in trains)
            parameter.requires_grad_(parameter in trains)
        self.since = {}
        for parameter in trains:
            in_stages = [parameter in scales for scales in self.scales]
            self.since[parameter] = trains_since(step, self.starts, in_stages)
        return changed

    def forget_state(self, optimizers: Sequence[Optimizer], restored: Collection[Parameter]) -> None:
        """Drop gradients and optimizer state of what is frozen, and the state of weights put back."""
        forgotten = set(restored)
        for parameter in self.may_train.values():
            if parameter not in self.scales[self.stage]:
                parameter.grad = None
                forgotten.add(parameter)
        for optimizer in optimizers:
            for parameter in forgotten:
                optimizer.state.pop(parameter, None)

    def scale(self, parameter: Parameter) -> float:
        """The factor on the learning rate of a parameter at this step."""
        scale = self.scales[self.stage].get(parameter)
        if scale is None:
            return 1.0
        return scale * warm_up(self.step, self.since[parameter], self.warmup_steps)

    def scales_in_group(self, group: dict[str, Any]) -> dict[str, list[float]]:
        """The factors in an optimizer's group, by the selector that decides."""
        return scales_by_selector(group["params"], self.entries, self.stage, self.scale)

    def restore(self) -> None:
        """Leave everything as it was found, but the weights."""
        if self.rates is not None:
            self.rates.remove()
        for parameter in self.may_train.values():
            parameter.requires_grad_(True)
        for module, training in self.modes.items():
            module.training = training
