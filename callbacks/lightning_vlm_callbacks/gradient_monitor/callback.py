"""What gradients are like, group by group, and what to do when they go wrong."""

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm_callbacks.gradient_monitor.rules import Limits, Watch
from lightning_vlm_callbacks.gradient_monitor.statistics import (
    OCTAVES,
    Measurement,
    norms,
    text_table,
)
from lightning_vlm_callbacks.requirements import (
    require_full_gradients,
    require_initialized,
    require_lightning,
    require_single_closure,
    several_closures,
)
from lightning_vlm_callbacks.run_length import warn_if_beyond
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import builds_in_setup
from lightning_vlm_callbacks.selectors import select_parameters

__all__ = ["GradientMonitor"]

ALL = "all"
MOST_SKIPS = 20
"""So many skipped steps in a row end the run: a limit is wrong, or the model is beyond help."""


class GradientMonitor(Callback):
    """Statistics of gradients per group and in total; warns of, skips or stops at what is unusual.

    Logged as `gradients/{group}/...` and `gradients/all/...`, with the step that they belong to: `norm`,
    `mean`, `std` (of the population), `max` (of magnitudes) and `zeros` (share) of the gradient of the whole
    optimizer step, accumulated and unscaled, before clipping; `clipped_norm` after it; `update_ratio`, by how
    much the step moved the weights, ‖Δw‖/‖w‖. They are copied to the host at once and read one step late,
    so that the host never waits for a GPU. NaN has a rule of its own, as no comparison with a limit finds it.

    Unusual is a group whose gradient is `nan` (or infinite), `exploding`, `vanishing` or `dead`: see
    `gradient_rules.anomaly`. The first of a kind and group is reported at once; all are counted, and the
    counts are reported at the end. At `nan` and `exploding`

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
        histogram: Send histograms of log2|g| to a WandbLogger.
        on_anomaly: See above.
        max_norm: A norm above this is `exploding`. None, here and below, turns the rule off.
        max_z: So is one this many standard deviations above the group's running mean, after a warm-up of 25
            measured steps (with `skip`: 25 steps), repeated when other parameters begin to train.
            ZClip (https://arxiv.org/abs/2504.02507) begins to clip at 2.5; to leave out a step takes more.
        min_norm: A norm below is `vanishing`.
        dead_after: A group is `dead` after so many measured steps in a row (with `skip`: steps) without
            gradient or with nothing but zeros, unless all of it is frozen.
        table: Print the last values at the end.

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
        min_norm: float | None = 1e-7,
        dead_after: int | None = 10,
        table: bool = False,
    ) -> None:
        super().__init__()
        if on_anomaly not in ("warn", "skip", "stop"):
            raise MisconfigurationException(f"on_anomaly: found {on_anomaly!r}; expected warn, skip or stop")
        self.limits = Limits(max_norm, max_z, min_norm, dead_after)
        for name, value in {"every_n_steps": every_n_steps, **self.limits._asdict()}.items():
            if value is not None and not value > 0:
                raise MisconfigurationException(f"{name}: found {value}; expected a number > 0, or None")
        self.groups, self.every_n_steps, self.on_anomaly = groups, every_n_steps, on_anomaly
        self.update_ratio, self.histogram = update_ratio, histogram
        self.table = table
        self._reset()

    def _reset(self) -> None:
        self._watch = Watch(self.limits)
        self._skips = 0  # in a row
        self._closures = 0  # gradients computed in the current step
        self._last: dict[str, dict[str, float]] = {}
        self._open: Measurement | None = None  # begun before the current step
        self._sent: Measurement | None = None  # on its way to the host
        self._alarm: bool | None = None  # for the step that was read last, until it is handled

    # Hooks

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        require_lightning("GradientMonitor", trainer)
        if stage != "fit":
            return
        require_full_gradients("GradientMonitor", trainer, pl_module)
        if self.histogram and not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            raise MisconfigurationException(
                "GradientMonitor(histogram=True): found no WandbLogger; add one to the Trainer, or set False"
            )
        self._reset()
        if not builds_in_setup(pl_module):
            self.check_selectors(pl_module)

    def check_selectors(self, root: nn.Module, may_train: Collection[nn.Parameter] = ()) -> None:
        """Raise a SelectorError if a group finds nothing in a model; `may_train` doesn't matter here."""
        select_parameters(root, self.groups or [])

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        require_initialized("GradientMonitor", pl_module)
        every = self.every_n_steps
        warn_if_beyond(trainer, "GradientMonitor: every_n_steps", every, "it measures nothing")
        if self.on_anomaly == "skip":
            require_single_closure("GradientMonitor(on_anomaly='skip')", trainer.optimizers)
        self._watch.scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        fused = any(getattr(one, "_step_supports_amp_scaling", False) for one in trainer.optimizers)
        if self._watch.scaled and fused:
            raise MisconfigurationException(
                "GradientMonitor: found a fused optimizer with a GradScaler, which unscales gradients inside "
                "the step; set fused=False, or the Trainer's precision to bf16-mixed"
            )
        # Nesterov's momentum is added to the gradients in place, so they aren't the clipped ones any more.
        options = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._clipped_stays = not any(group.get("nesterov") for group in options)
        self._every = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._every == 0 and self.on_anomaly != "skip":
            rank_zero_warn(
                "GradientMonitor measures nothing, as the Trainer's log_every_n_steps is 0; give the "
                "callback its own every_n_steps"
            )
        self._trainer, self._loggers, self._spare = trainer, trainer.loggers, dict[int, Tensor]()
        self._members = {
            name: [one for one in group if one.numel()]
            for name, group in {**_groups(pl_module, self.groups), ALL: pl_module.parameters()}.items()
        }

    @override
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        self._closures += 1
        if (
            self._closures > 1
        ):  # LBFGS, or one like SAM: at other weights than those that the step is made from
            if self.on_anomaly == "skip":
                raise several_closures("GradientMonitor(on_anomaly='skip')", optimizer)
            return
        self._read()
        self._act(trainer)
        step = trainer.global_step
        due = self._every > 0 and (step + 1) % self._every == 0
        skip = self.on_anomaly == "skip"
        if not (due or skip):
            return
        measured = Measurement(step, self._members)
        if skip:
            skip = self._skip(trainer, optimizer, measured)
        elif not measured.places:
            self._judge(step, {})
        if due and measured.places:
            measured.before_step(self.histogram, self._spare if self.update_ratio and not skip else None)
            self._open = measured

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", *_: Any, **__: Any) -> None:
        closures, self._closures = self._closures, 0
        if self._open is not None:
            self._open.after_step(self._clipped_stays and closures == 1)
            self._sent, self._open = self._open, None

    @override
    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._read()
        self._spare.clear()
        if self._watch.seen:
            rank_zero_warn(f"GradientMonitor: {'; '.join(self._watch.counts())}")
        if self.table and trainer.is_global_zero:
            print(text_table(self._last))

    @override
    def state_dict(self) -> dict[str, Any]:
        self._read()  # it belongs to a step that the checkpoint contains
        return {**self._watch.state(), "skips": self._skips, "alarm": self._alarm}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch.restore(state_dict)
        self._skips, self._alarm = state_dict["skips"], state_dict.get("alarm")

    # Steps

    def _read(self) -> None:
        """Log and judge the step that was measured last, unless that has been done."""
        if self._sent is None:
            return
        measured, self._sent = self._sent, None
        found, histograms = measured.read()
        metrics = {f"gradients/{name}/{key}": x for name, one in found.items() for key, x in one.items()}
        for logger in self._loggers:
            logger.log_metrics(metrics, step=measured.step)
            if histograms and isinstance(logger, WandbLogger):
                logger.log_metrics(_for_wandb(logger, histograms), step=measured.step)
        self._last.update(found)
        if self.on_anomaly != "skip":  # with `skip` the step was judged before it was made
            self._alarm = self._judge(measured.step, {name: one["norm"] for name, one in found.items()})

    def _judge(self, step: int, norm_of: Mapping[str, float]) -> bool:
        """Judge the groups that could have a gradient. Whether that is a reason to stop or skip."""
        trained = {name: sum(one.requires_grad for one in group) for name, group in self._members.items()}
        norms_now = {name: norm_of.get(name) for name, count in trained.items() if count}
        alarm, news = self._watch.judge(step, norms_now, trained[ALL])
        if news:
            found = "; ".join(news)
            rank_zero_warn(f"GradientMonitor, step {step}: {found}. More such steps are reported at the end")
            record_event(self._trainer, "anomaly", found, step)
        return alarm

    def _act(self, trainer: "pl.Trainer") -> None:
        """Stop, if the last step that was read is a reason to."""
        if self.on_anomaly == "stop" and self._alarm is not None:
            stop = trainer.strategy.reduce_boolean_decision(self._alarm, all=False)
            trainer.should_stop = trainer.should_stop or stop
        self._alarm = None

    def _skip(self, trainer: "pl.Trainer", optimizer: Optimizer, measured: Measurement) -> bool:
        """Judge a step before it is made, and leave it out if any rank has reason to."""
        norm_of: dict[str, float] = {}
        if measured.gradients:
            found = norms(measured.gradients).cpu().tolist()  # the host waits here
            for name, places in measured.places.items():
                norm_of[name] = math.sqrt(sum(found[place] ** 2 for place in places))
        alarm = self._judge(measured.step, norm_of)
        if not trainer.strategy.reduce_boolean_decision(alarm, all=False):
            self._skips = 0
            return False
        # Optimizers skip parameters without a gradient. With zeros, decay and momentum would still act.
        optimizer.zero_grad(set_to_none=True)
        record_event(trainer, "skipped", "GradientMonitor left out the step's gradient")
        self._skips += 1
        if self._skips == MOST_SKIPS:
            counts = "; ".join(self._watch.counts())
            raise MisconfigurationException(
                f"GradientMonitor skipped {MOST_SKIPS} steps in a row. {counts}. If such "
                f"norms are right, raise max_norm ({self.limits.max_norm}) or max_z ({self.limits.max_z})"
            )
        return True


def _groups(module: nn.Module, selectors: Sequence[str] | None) -> dict[str, Any]:
    """Parameters by group; by default as `GradientMonitor` says."""
    parts = getattr(module, "parts", None)
    if selectors is None and isinstance(parts, Mapping) and parts:
        inside = tuple(f"{part}." for part in parts)
        selectors = [part for part, paths in parts.items() if paths and not part.startswith(inside)]
    if selectors is not None:
        return {selector: select_parameters(module, selector).values() for selector in selectors}
    prefix, children = "", _children(module)
    while len(children) == 1 and (below := _children(*children.values())):
        prefix, children = f"{prefix}{next(iter(children))}.", below
    return {f"{prefix}{name}": child.parameters() for name, child in children.items()}


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}


def _for_wandb(logger: WandbLogger, histograms: Mapping[str, list[float]]) -> dict[str, Any]:
    _ = logger.experiment  # imports wandb, which this package doesn't: it works without
    histogram = sys.modules["wandb"].Histogram
    return {
        f"gradients/{name}/log2": histogram(np_histogram=(counts, OCTAVES))
        for name, counts in histograms.items()
    }
