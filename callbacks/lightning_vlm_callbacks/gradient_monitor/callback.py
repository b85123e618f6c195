"""What gradients are like, group by group, and what to do when they go wrong."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.ddp import gather_nothing
from lightning_vlm_callbacks.gradient_monitor.groups import ALL, parameter_groups
from lightning_vlm_callbacks.gradient_monitor.measurement import Measurement
from lightning_vlm_callbacks.gradient_monitor.rules import Limits, Watch
from lightning_vlm_callbacks.gradient_monitor.statistics import BIN_EDGES
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_lightning,
    require_single_closure,
    several_closures,
)
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import builds_in_setup, log_metrics, loss_scaler
from lightning_vlm_callbacks.selectors import select_parameters
from lightning_vlm_callbacks.shards import is_spread
from lightning_vlm_callbacks.trackers import log_histograms, shows_histograms

__all__ = ["GradientMonitor"]

MOST_SKIPS = 20
"""So many skipped steps in a row end the run: a limit is wrong, or the model is beyond help."""


class GradientMonitor(Callback):
    """Statistics of gradients per group and in total; warns of, skips or stops at what is unusual.

    Logged as `gradients/{group}/...` and `gradients/all/...`, with the step that they belong to: `norm`,
    `mean`, `std` (of the population), `max` (of magnitudes) and `zeros` (share) of the gradient of the whole
    optimizer step, accumulated and unscaled, before clipping; `clipped_norm` after it; `update_ratio`, by how
    much the step moved the weights, ‖Δw‖/‖w‖. They are copied to the host at once and read one step late,
    so that the host never waits for a GPU. NaN has a rule of its own, as no comparison with a limit finds it.

    Unusual is a group whose gradient is `nan` (or infinite), `exploding`, `vanishing` (a norm below 1e-7) or
    `dead`: nothing but zeros in 10 measured steps in a row (with `skip`: steps), unless all of it is frozen.
    The first of a kind and group is reported at once; all are counted, which is reported at the end. At `nan`
    and `exploding`

    - `warn` only warns;
    - `stop` ends the run after the next step;
    - `skip` skips the step: weights and optimizer state stay as they are on all ranks, while schedule
      and step number continue. For this the host waits for the norms at every step. 20 skips in a row are an
      error.

    Of an optimizer that computes several gradients in a step, such as LBFGS, the first is measured, without
    `clipped_norm`; `skip` isn't possible with it. Complex gradients count as their real and imaginary parts.

    Under `precision="16-mixed"` infinite gradients aren't unusual: the GradScaler skips such steps.

    Args:
        groups: Selectors; they may overlap. None: the parts if the module has a mapping `parts` (without
            parts of parts); else its children, or if all is in one of them, that one's. Frozen parameters
            belong to their groups too, as they may be unfrozen; a group without gradient logs nothing.
        every_n_steps: How often to measure; None is the Trainer's `log_every_n_steps`.
        update_ratio: Measure `update_ratio`. It takes the memory of the trained weights once more: on a GPU
            only during the optimizer's step.
        histogram: Send histograms of log2|g| to W&B or TensorBoard, such as to see how much of a gradient
            underflows in half precision.
        on_anomaly: See above.
        max_norm: A norm above this is `exploding`; raise it if losses are sums, or weigh much. None turns the
            rule off.
        max_z: So is one this many standard deviations above the group's running mean, after a warm-up of 25
            measured steps (with `skip`: 25 steps), repeated when other parameters begin to train.
            ZClip (https://arxiv.org/abs/2504.02507) begins to clip at 2.5; to leave out a step takes more.
            None turns the rule off.

    Raises:
        MisconfigurationException: An argument is out of range, or the run can't be measured.
        SelectorError: A group finds nothing.
    """

    def __init__(
        self,
        groups: list[str] | None = None,
        every_n_steps: int | None = None,
        update_ratio: bool = True,
        histogram: bool = False,
        on_anomaly: Literal["warn", "skip", "stop"] = "warn",
        max_norm: float | None = 100.0,
        max_z: float | None = 6.0,
    ) -> None:
        super().__init__()
        if on_anomaly not in ("warn", "skip", "stop"):
            raise MisconfigurationException(f"on_anomaly: found {on_anomaly!r}; expected warn, skip or stop")
        for name, value in {"every_n_steps": every_n_steps, "max_norm": max_norm, "max_z": max_z}.items():
            if value is not None and not value > 0:
                raise MisconfigurationException(f"{name}: found {value}; expected a number > 0, or None")
        self.groups = groups
        self.every_n_steps = every_n_steps
        self.update_ratio = update_ratio
        self.histogram = histogram
        self.on_anomaly = on_anomaly
        self.limits = Limits(max_norm, max_z)
        self._reset()

    def _reset(self) -> None:
        self._watch = Watch(self.limits)
        self._skips = 0
        """In a row."""
        self._closures = 0
        """Gradients computed in the current step."""
        self._open: Measurement | None = None
        """Begun before the current step."""
        self._sent: Measurement | None = None
        """On its way to the host."""
        self._alarm: bool | None = None
        """Of the step that was read last, until it is handled."""

    # Hooks

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_lightning("GradientMonitor", trainer)
        if stage != "fit":
            return
        require_full_gradients("GradientMonitor", trainer, pl_module, needs_whole="")
        if self.histogram and not shows_histograms(trainer):
            raise MisconfigurationException(
                "GradientMonitor(histogram=True): found no logger that shows histograms; add a WandbLogger "
                "or a TensorBoardLogger to the Trainer, or set False"
            )
        self._reset()
        if not builds_in_setup(pl_module):
            self.check_selectors(pl_module)

    def check_selectors(self, root: nn.Module, may_train: Collection[nn.Parameter] = ()) -> None:
        """Raise a SelectorError if a group finds nothing in a model; `may_train` doesn't matter here."""
        select_parameters(root, self.groups or [])

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        gather_nothing(pl_module)
        require_initialized("GradientMonitor", pl_module)
        if self.on_anomaly == "skip":
            require_single_closure("GradientMonitor(on_anomaly='skip')", trainer.optimizers)
        self._watch.has_scaler = loss_scaler(trainer) is not None
        if self._watch.has_scaler:
            _refuse_fused(trainer.optimizers)
        # Nesterov's momentum is added to the gradients in place, so they aren't the clipped ones any more.
        options = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._keeps_clipped = not any(group.get("nesterov") for group in options)
        self._every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._warn_of_nothing_measured(trainer)
        self._trainer = trainer
        self._buffers: dict[int, Tensor] = {}
        self._groups = parameter_groups(pl_module, self.groups)

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        self._closures += 1
        if self._closures > 1:  # LBFGS and SAM: at other weights than those that the step is made from
            if self.on_anomaly == "skip":
                raise several_closures("GradientMonitor(on_anomaly='skip')", optimizer)
            return
        self._read()
        self._stop_if_due(trainer)
        step = trainer.global_step
        is_due = self._every > 0 and (step + 1) % self._every == 0
        if is_due or self.on_anomaly == "skip":
            measured = Measurement(step, self._groups, is_spread(trainer.strategy))
            self._measure(trainer, optimizer, measured, is_due)

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", *_: Any, **__: Any) -> None:
        closures, self._closures = self._closures, 0
        if self._open is not None:
            self._open.after_step(self._keeps_clipped and closures == 1)
            self._sent, self._open = self._open, None

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._read()
        self._buffers.clear()
        if self._watch.seen:
            rank_zero_warn(f"GradientMonitor: {'; '.join(self._watch.counts())}")

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()  # it belongs to a step that the checkpoint contains
        return {**self._watch.state_dict(), "skips": self._skips, "alarm": self._alarm}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch.load_state_dict(state_dict)
        self._skips, self._alarm = state_dict["skips"], state_dict.get("alarm")

    # Steps

    def _measure(
        self, trainer: "pl.Trainer", optimizer: Optimizer, measured: Measurement, is_due: bool
    ) -> None:
        """Begin to measure a step if it is due, and skip it if that is wanted and there is reason to."""
        skipped = False
        if self.on_anomaly == "skip":
            skipped = self._skip_if_unusual(trainer, optimizer, measured)
        elif not measured.places:
            self._judge(measured.step, {})
        if is_due and measured.places:
            copies_weights = self.update_ratio and not skipped
            measured.before_step(self.histogram, self._buffers if copies_weights else None)
            self._open = measured

    def _read(self) -> None:
        """Log and judge the step that was measured last, unless that has been done."""
        if self._sent is None:
            return
        measured, self._sent = self._sent, None
        found, histograms = measured.read()
        metrics: dict[str, float] = {}
        for group, values in found.items():
            metrics |= {f"gradients/{group}/{name}": value for name, value in values.items()}
        log_metrics(self._trainer, metrics, measured.step)
        if histograms:
            named = {f"gradients/{name}/log2": counts for name, counts in histograms.items()}
            log_histograms(self._trainer, named, BIN_EDGES, measured.step)
        if self.on_anomaly != "skip":  # with `skip` the step was judged before it was made
            norms = {group: values["norm"] for group, values in found.items()}
            self._alarm = self._judge(measured.step, norms)

    def _judge(self, step: int, norm_of: Mapping[str, float]) -> bool:
        """Judge the groups that could have a gradient. Whether that is a reason to stop or skip."""
        trained = {
            name: sum(parameter.requires_grad for parameter in group) for name, group in self._groups.items()
        }
        norms = {name: norm_of.get(name) for name, count in trained.items() if count}
        alarm, news = self._watch.judge(step, norms, trained[ALL])
        if news:
            found = "; ".join(news)
            rank_zero_warn(f"GradientMonitor, step {step}: {found}. More such steps are reported at the end")
            record_event(self._trainer, "anomaly", found, step)
        return alarm

    def _stop_if_due(self, trainer: "pl.Trainer") -> None:
        """Stop, if the last step that was read is a reason to."""
        if self.on_anomaly == "stop" and self._alarm is not None:
            stop = trainer.strategy.reduce_boolean_decision(self._alarm, all=False)
            trainer.should_stop = trainer.should_stop or stop
        self._alarm = None

    def _skip_if_unusual(self, trainer: "pl.Trainer", optimizer: Optimizer, measured: Measurement) -> bool:
        """Judge a step before it is made, and leave it out if any rank has reason to."""
        alarm = self._judge(measured.step, measured.norms())
        if not trainer.strategy.reduce_boolean_decision(alarm, all=False):
            self._skips = 0
            return False
        # Optimizers skip parameters without a gradient. With zeros, decay and momentum would still act.
        optimizer.zero_grad(set_to_none=True)
        record_event(trainer, "skipped", "GradientMonitor skipped the step, as its gradient is unusual")
        self._skips += 1
        if self._skips == MOST_SKIPS:
            counts = "; ".join(self._watch.counts())
            raise MisconfigurationException(
                f"GradientMonitor skipped {MOST_SKIPS} steps in a row. {counts}. If such "
                f"norms are right, raise max_norm ({self.limits.max_norm}) or max_z ({self.limits.max_z})"
            )
        return True

    def _warn_of_nothing_measured(self, trainer: "pl.Trainer") -> None:
        warn_if_beyond(trainer, "GradientMonitor: every_n_steps", self.every_n_steps, "it measures nothing")
        if self._every == 0 and self.on_anomaly != "skip":
            rank_zero_warn(
                "GradientMonitor measures nothing, as the Trainer's log_every_n_steps is 0; give the "
                "callback its own every_n_steps"
            )


def _refuse_fused(optimizers: list[Optimizer]) -> None:
    if any(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers):
        raise MisconfigurationException(
            "GradientMonitor: found a fused optimizer with a GradScaler, which unscales gradients inside "
            "the step; set fused=False, or the Trainer's precision to bf16-mixed"
        )
