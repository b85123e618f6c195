"""Parts of a model begin to train, stop, or change their learning rate in the course of one run."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import Parameter
from typing_extensions import override

from lightning_vlm_callbacks.ddp import gather_nothing, reread_fsdp2, rewrap_ddp
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
from lightning_vlm_callbacks.staged_unfreezing.checks import (
    check_starts,
    explain_learning_rate_monitor,
    require_stages,
)
from lightning_vlm_callbacks.staged_unfreezing.entries import StageEntry, entries_of, scales_of, table
from lightning_vlm_callbacks.staged_unfreezing.plateau import PlateauWatch
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates, learning_rates
from lightning_vlm_callbacks.staged_unfreezing.staged_run import StagedRun
from lightning_vlm_callbacks.staged_unfreezing.stages import parse, stage_at

__all__ = ["StagedUnfreezing"]


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
            what the module has frozen, or something in no optimizer; the strategy isn't one device, DDP or
            FSDP2; the run has no end or length that the unit needs; nothing validates. Or a metric isn't
            logged.
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
        self._run = StagedRun()

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require_lightning("StagedUnfreezing", trainer)
        if stage == "fit":
            require_stages(trainer, pl_module)
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
        gather_nothing(pl_module)
        require_initialized("StagedUnfreezing", pl_module)
        require_plain_optimizers("StagedUnfreezing", trainer.optimizers)
        self._run = self._begin(trainer, pl_module)
        explain_learning_rate_monitor(trainer)
        self._enter(trainer, pl_module, stage_at(trainer.global_step, self._run.starts))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        run.step = trainer.global_step
        stage = stage_at(run.step, run.starts)
        if stage != run.stage:
            self._enter(trainer, pl_module, stage)
        elif run.validated:  # the module's own on_validation_model_train may leave eval mode on
            hold_modes(pl_module)
        run.validated = False
        self._log_rates(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._run.validated = True
            self._watch_plateau(trainer, pl_module)

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

    # Begin and end

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
        if may_train is None:
            may_train = set(root.parameters())
        self.entries(root, may_train, {})

    def _begin(self, trainer: Trainer, root: LightningModule) -> StagedRun:
        self._plateaus.new_fit()
        run = StagedRun(
            step=trainer.global_step - 1, starts=self.starts(trainer), warmup_steps=self.warmup_steps
        )
        check_starts(trainer, self.stages, run.starts)
        run.modes = {module: module.training for module in root.modules()}
        run.may_train = {name: weight for name, weight in root.named_parameters() if weight.requires_grad}
        may_train = set(run.may_train.values())
        rates = learning_rates(trainer.optimizers)
        run.entries = self.entries(root, may_train, rates)
        run.scales = [scales_of(entries) for entries in run.entries]
        run.require_in_optimizers(rates)
        self.show(trainer, root, run, rates)
        run.rates = ScaledRates(trainer.optimizers, run.scale, run.scales_in_group)
        return run

    # What a subclass may say otherwise

    def starts(self, trainer: Trainer) -> list[int | None]:
        """The first step of each stage, None where a metric hasn't decided yet."""
        starts: list[int | None] = []
        for number, stage in enumerate(self.stages):
            if stage.at is None:
                starts.append(self._plateaus.begun.get(number))
            else:
                starts.append(first_step_at(trainer, stage.at, self.unit))
        return starts

    def entries(
        self, root: nn.Module, may_train: set[Parameter], rates: Mapping[Parameter, float]
    ) -> list[list[StageEntry]]:
        """What each stage trains, and at which scale.

        Args:
            root: What selectors start from.
            may_train: The parameters that may ever train.
            rates: The learning rate of each parameter in an optimizer; empty where there is none yet.
        """
        return entries_of(root, self.stages, may_train, self.layer_decay, self._may_lack)

    def show(
        self, trainer: Trainer, root: nn.Module, run: StagedRun, rates: Mapping[Parameter, float]
    ) -> None:
        """Show what trains when, as a fit begins."""
        rank_zero_info(table(root, self.stages, run.starts, run.entries, rates))

    def name(self, stage: int) -> str:
        """A stage as lines and reports call it."""
        trains = [f"{entry.selector} ×{entry.scale:g}" for entry in self._run.entries[stage] if entry.scales]
        return ", ".join(trains)

    def say(self, stage: int, step: int) -> None:
        """Say that a stage begins, or that a resumed run is in it."""
        what = f"stage {stage} of {len(self.stages) - 1} trains {self.name(stage)}"
        rank_zero_info(f"StagedUnfreezing: step {step}, {what}")

    def _end(self) -> None:
        self._run.restore()
        self._run = StagedRun()

    # Stages

    def _enter(self, trainer: Trainer, root: LightningModule, stage: int) -> None:
        """Train what a stage trains and nothing else, from the next batch on."""
        run = self._run
        step = trainer.global_step
        restored = self._plateaus.end(root, stage)
        changed = run.enter(stage, step)
        run.forget_state(trainer.optimizers, restored)
        hold_modes(root)
        if changed:
            rewrap_ddp(trainer, root)
            reread_fsdp2(root)
        self.say(stage, step)
        record_event(trainer, "stage", self.name(stage))
        log_metrics(trainer, {"staged_unfreezing/stage": stage}, step)

    def _watch_plateau(self, trainer: Trainer, root: LightningModule) -> None:
        """Let the next stage begin if it waits for a metric that has stalled."""
        run = self._run
        stage = stage_at(max(run.step, 0), run.starts)
        following = stage + 1
        if following == len(self.stages) or run.starts[following] is not None:
            return
        plateau = self.stages[following].on_plateau
        assert plateau is not None  # all other stages have a known start
        if self._plateaus.is_due(trainer, root, following, plateau, run.scales[stage]):
            # An accumulation window stays in the stage in which it began.
            run.starts[following] = self._plateaus.begun[following] = run.step + 1

    def _log_rates(self, trainer: Trainer) -> None:
        run = self._run
        if trainer.loggers and run.logged != run.step and logs_at(trainer, run.step + 1):
            run.logged = run.step
            log_metrics(trainer, rates_in_force(trainer.optimizers), run.step)
