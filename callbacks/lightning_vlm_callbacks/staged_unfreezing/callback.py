"""Parts of a model begin to train, stop, or change their learning rate in the course of one run."""

from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import Parameter
from typing_extensions import override

from lightning_vlm_callbacks.ddp import rewrap_ddp
from lightning_vlm_callbacks.modes import hold_modes, release_modes
from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.requirements import (
    require_initialized,
    require_lightning,
    require_plain_optimizers,
)
from lightning_vlm_callbacks.run_length import Unit, first_step_at
from lightning_vlm_callbacks.run_report import record_event
from lightning_vlm_callbacks.runs import builds_in_setup, log_metrics, logs_at
from lightning_vlm_callbacks.staged_unfreezing.entries import Line, resolve, scales_by_selector, table
from lightning_vlm_callbacks.staged_unfreezing.moments import check_moments
from lightning_vlm_callbacks.staged_unfreezing.needs import explain_learning_rate_monitor, need_stages
from lightning_vlm_callbacks.staged_unfreezing.plateau import PlateauWatch
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates, learning_rates
from lightning_vlm_callbacks.staged_unfreezing.stages import (
    parse,
    stage_at,
    trains_since,
    warm_up,
)

__all__ = ["StagedUnfreezing"]


@dataclass
class _Run:
    """What holds during one fit."""

    step: int = 0
    """The optimizer step that the last batch was for."""
    stage: int = 0
    starts: list[int | None] = field(default_factory=list)
    ever: dict[str, Parameter] = field(default_factory=dict)
    """What the module lets train."""
    modes: dict[nn.Module, bool] = field(default_factory=dict)
    """Which modules were in train mode when the fit began."""
    lines: list[list[Line]] = field(default_factory=list)
    scales: list[dict[Parameter, float]] = field(default_factory=list)
    """Of each stage."""
    since: dict[Parameter, int | None] = field(default_factory=dict)
    rates: ScaledRates | None = None
    validated: bool = False
    logged: int = -1
    """The step whose learning rates were logged last."""


class StagedUnfreezing(Callback):
    """Trains parts of a model in stages, each with its own scale on the learning rate.

    The module says what may ever train, the stages say when. What requires gradients when the fit begins goes
    into the optimizer and DDP as always; from the first batch on only what the stage names requires them.
    So optimizer groups never change and any scheduler works: rates are scaled inside `optimizer.step` only.
    Callbacks that look at `optimizer.param_groups` in `on_before_optimizer_step` see the scaled groups;
    Lightning's LearningRateMonitor, which looks between steps, doesn't. The rates in force are logged as
    `lr/<group>`, or `lr/<group>/<selector>` where selectors divide a group; see `rates_in_force`.

    What is frozen keeps no graph, no gradient and no optimizer state, stays as it is bit for bit, and is in
    eval mode, even if the project calls `train()`: no dropout, norm statistics untouched. What is unfrozen
    begins without momentum. Under DDP the module is wrapped again at each change, so only what trains is
    synchronised.

    A stage begins between two optimizer steps and is a function of `trainer.global_step`, so a resumed run
    continues like the uninterrupted one. Only what a metric has decided is saved; stages given on resume win.

    Lightning's `BaseFinetuning` adds optimizer groups instead, which breaks schedulers, DDP and resume.

    Args:
        stages: A list of stages, each with `train` (selector -> scale of its learning rate; of selectors that
            overlap, the later wins) and either `at` or `on_plateau`. Or the name of a ready plan; see `plan`
            in `lightning_vlm_callbacks.staged_unfreezing.stages`.
            `at`: where it begins, increasing, the first 0.
            `on_plateau`: `{monitor, mode: min, patience: 3, min_delta: 0, from_best: false}`: it begins when,
            since the stage before began, the metric wasn't better than its best by more than `min_delta` in
            `patience` validations in a row. `from_best` puts back the weights of the best one. In a
            distributed run the metric of the first process counts: log it with `sync_dist`.
        unit: Of `at`: a fraction of the run, optimizer steps, or epochs (2.5 is in the middle of the third).
        warmup_steps: Optimizer steps over which the rate of what was just unfrozen rises linearly.
        layer_decay: Rates fall by this factor from layer to layer towards the input, within each selector;
            see `depth_factors`. None for no decay.

    Raises:
        MisconfigurationException: The arguments are wrong. Or, when the fit begins: a selector takes only
            what the module has frozen, or something in no optimizer; the strategy isn't one device or DDP;
            the run has no end or length that the unit needs; nothing validates. Or a metric isn't logged.
        SelectorError: When the fit begins: a selector finds nothing.

    >>> stages = [{"at": 0, "train": {"head": 1.0}}, {"at": 0.5, "train": {"head": 1.0, "blocks[-1:]": 0.1}}]
    >>> callback = StagedUnfreezing(stages, warmup_steps=100)
    >>> medical = StagedUnfreezing("medical", layer_decay=0.9)
    """

    def __init__(
        self,
        stages: list[dict[str, Any]] | str,
        unit: Unit = "fraction",
        warmup_steps: int = 0,
        layer_decay: float | None = None,
    ) -> None:
        super().__init__()
        self.stages = parse(stages, unit)
        if warmup_steps < 0:
            raise MisconfigurationException(f"warmup_steps: found {warmup_steps}; expected 0 or more")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise MisconfigurationException(f"layer_decay: found {layer_decay}; expected a number in (0, 1]")
        self.unit, self.warmup_steps, self.layer_decay = unit, warmup_steps, layer_decay
        # A head with LoRA, or tied to the embeddings, has no trainable parameters of its own.
        self._may_lack = ("head",) if isinstance(stages, str) else ()
        self._plateaus = PlateauWatch()
        self._run = _Run()

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_lightning("StagedUnfreezing", trainer)
        if stage == "fit":
            need_stages(trainer, pl_module)
            self._plateaus = PlateauWatch()
            if not builds_in_setup(pl_module):
                self.check_selectors(pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check_selectors(pl_module)  # the module may have been built since `setup`

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only here the step and the checkpoint's state are known, and DDP has wrapped all that will train.
        self._end()  # Lightning's tuner calls this twice
        require_initialized("StagedUnfreezing", pl_module)
        require_plain_optimizers("StagedUnfreezing", trainer.optimizers)
        run = self._run = _Run(step=trainer.global_step - 1)
        self._plateaus.new_fit()
        run.modes = {module: module.training for module in pl_module.modules()}
        run.ever = {name: one for name, one in pl_module.named_parameters() if one.requires_grad}
        run.starts = self._starts(trainer)
        check_moments(trainer, self.stages, run.starts)
        ever = set(run.ever.values())
        run.lines = resolve(pl_module, self.stages, ever, self.layer_decay, self._may_lack)
        run.scales = [
            {one: scale for line in lines for one, scale in line.scales.items()} for lines in run.lines
        ]
        rates = learning_rates(trainer.optimizers)
        staged = set().union(*run.scales)
        lacking = [name for name, one in run.ever.items() if one in staged and one not in rates]
        if lacking:
            raise MisconfigurationException(
                f"stages: found {lacking[0]} and {len(lacking) - 1} more in no optimizer; expected "
                "configure_optimizers to give it all parameters that require gradients"
            )
        rank_zero_info(table(pl_module, self.stages, run.starts, run.lines, rates))
        run.rates = ScaledRates(
            trainer.optimizers,
            self._scale,
            lambda group: scales_by_selector(group["params"], run.lines, run.stage, self._scale),
        )
        explain_learning_rate_monitor(trainer)
        self._enter(trainer, pl_module, stage_at(trainer.global_step, run.starts))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        run, run.step = self._run, trainer.global_step
        stage = stage_at(run.step, run.starts)
        if stage != run.stage:
            self._enter(trainer, pl_module, stage)
        elif run.validated:  # the module's own on_validation_model_train may leave eval mode on
            hold_modes(pl_module)
        run.validated = False
        if trainer.loggers and run.logged != run.step and logs_at(trainer, run.step + 1):
            run.logged = run.step
            log_metrics(trainer, rates_in_force(trainer.optimizers), run.step)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        run = self._run
        run.validated = True
        stage = stage_at(max(run.step, 0), run.starts)
        after = stage + 1
        plateau = self.stages[after].on_plateau if after < len(self.stages) else None
        if plateau is None or run.starts[after] is not None:
            return
        if self._plateaus.is_due(trainer, pl_module, after, plateau, run.scales[stage]):
            # An accumulation window stays in the stage in which it began.
            run.starts[after] = self._plateaus.begun[after] = run.step + 1

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        release_modes(pl_module)
        self._end()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        release_modes(pl_module)
        self._end()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._plateaus.state()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._plateaus = PlateauWatch(state_dict)

    # Stages

    def check_selectors(self, root: nn.Module, may_train: set[Parameter] | None = None) -> None:
        """Refuse stages that don't fit a model.

        Args:
            root: What selectors start from.
            may_train: The parameters that may ever train; None takes all for such, since a module may still
                freeze and unfreeze some.

        Raises:
            SelectorError: A selector finds nothing.
            MisconfigurationException: A selector takes only parameters that may never train.
        """
        trains = set(root.parameters()) if may_train is None else may_train
        resolve(root, self.stages, trains, None, self._may_lack)

    def _starts(self, trainer: Trainer) -> list[int | None]:
        """The first step of each stage, None where a metric hasn't decided yet."""
        return [
            self._plateaus.begun.get(number)
            if stage.at is None
            else first_step_at(trainer, stage.at, self.unit)
            for number, stage in enumerate(self.stages)
        ]

    def _enter(self, trainer: Trainer, root: LightningModule, stage: int) -> None:
        """Train what a stage trains and nothing else, from the next batch on."""
        run, step = self._run, trainer.global_step
        run.stage, trains = stage, run.scales[stage]
        forget = {one for one in run.ever.values() if one not in trains} | self._plateaus.end(root, stage)
        changed = any(one.requires_grad != (one in trains) for one in run.ever.values())
        for one in run.ever.values():
            one.requires_grad_(one in trains)
            if one not in trains:
                one.grad = None
        for optimizer in trainer.optimizers:
            for one in forget:
                optimizer.state.pop(one, None)
        in_stages = {one: [one in scales for scales in run.scales] for one in trains}
        run.since = {one: trains_since(step, run.starts, there) for one, there in in_stages.items()}
        hold_modes(root)
        if changed:
            rewrap_ddp(trainer, root)
        what = ", ".join(f"{line.selector} ×{line.scale:g}" for line in run.lines[stage] if line.scales)
        rank_zero_info(
            f"StagedUnfreezing: step {step}, stage {stage} of {len(self.stages) - 1} trains {what}"
        )
        record_event(trainer, "stage", what)
        log_metrics(trainer, {"staged_unfreezing/stage": stage}, step)

    def _scale(self, one: Parameter) -> float:
        """Of the learning rate of a parameter at this step."""
        run = self._run
        scale = run.scales[run.stage].get(one)
        return 1.0 if scale is None else scale * warm_up(run.step, run.since[one], self.warmup_steps)

    def _end(self) -> None:
        """Leave everything as it was found, but the weights."""
        if self._run.rates is not None:
            self._run.rates.remove()
        for one in self._run.ever.values():
            one.requires_grad_(True)
        for module, training in self._run.modes.items():
            module.training = training
        self._run = _Run()
