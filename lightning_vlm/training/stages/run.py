"""Where a stage of a run begins: what changes in the module, the optimizer and the scores."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks import EarlyStopCheckpoint, GradNorm
from lightning_vlm_callbacks.staged_unfreezing import StagedUnfreezing
from typing_extensions import override

from lightning_vlm.data.stages.staged_data import StagedData
from lightning_vlm.errors import UserError
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.optim import settle_rates
from lightning_vlm.training.stages.stage import Stage, stages_of
from lightning_vlm.training.stages.unfreezing import StageUnfreezing

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class RunInStages(Callback):
    """Changes a module where a stage of its run begins, which is always where an epoch begins.

    All that it changes is a function of the stage, which is one of the number of the epoch. So a run that is
    resumed inside a stage, or from a checkpoint written where one ends, goes on like the uninterrupted one.
    What a checkpoint keeps is where the stage began, so that a run whose stages were changed before that
    isn't resumed somewhere else.
    """

    def __init__(self) -> None:
        self._own: tuple[KindWeights, ScoreChoice] | None = None  # the module's own, during a fit
        self._data: StagedData | None = None
        self._saved: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        self._data = stages_of(trainer)
        if self._data is None:
            return
        self._check_continued(self._data)
        self._own = pl_module.token_weights, pl_module.callbacks.evaluation.choice
        self._apply(self._data, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        data = self._data
        if data is None:
            return
        if trainer.current_epoch == data.span.first_epoch:
            self._apply(data, pl_module)
            self._begin(data, trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        if self._own is not None:
            pl_module.token_weights, choice = self._own
            pl_module.callbacks.evaluation.choose(choice)
        self._own = None

    @override
    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "VLMModule", exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._data is None:
            return {}
        span = self._data.span
        return {"stage": span.name, "first_step": span.first_step, "first_epoch": span.first_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = dict(state_dict)

    def _apply(self, data: StagedData, module: "VLMModule") -> None:
        """Give a module what the stage says, or its own where the stage says nothing."""
        stage = data.stage
        if self._own is None or not isinstance(stage, Stage):
            return
        weights, choice = self._own
        module.token_weights = stage.token_weights or weights
        module.callbacks.evaluation.choose(choice if stage.scores is None else ScoreChoice(stage.scores))
        if any(isinstance(one, Stage) and one.task_weights is not None for one in data.stages):
            given: Any = module.task_weights if stage.task_weights is None else stage.task_weights
            assert module.tasks is not None
            own = make_task_weights(given, module.tasks.names)
            module.tasks.weights.copy_(own.weights)

    def _begin(self, data: StagedData, trainer: Trainer, module: "VLMModule") -> None:
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            # Steps that were skipped as nothing in them had weight don't shorten the stages behind.
            scheduler.last_epoch = data.span.first_step
            settle_rates(scheduler)
        if getattr(data.stage, "reset_optimizer", False):
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        if data.now > 0:
            module.callbacks.skip_check.start_stage()
            module.callbacks.packing_proof.start_stage()
            module.callbacks.packing_proof.prove(trainer, module)

    def _check_continued(self, data: StagedData) -> None:
        """Refuse to resume in a stage that began elsewhere.

        Raises:
            UserError: Stages before that of the checkpoint have changed.
        """
        saved, self._saved = self._saved, {}
        if not saved:
            return
        for span in data.plan.spans:
            if span.name == saved["stage"]:
                if (span.first_step, span.first_epoch) == (saved["first_step"], saved["first_epoch"]):
                    return
                found = f"{span.name} from step {span.first_step:,}"
                break
        else:
            found = f"no stage {saved['stage']}"
        raise UserError(
            f"stages: found {found}, but the checkpoint is of {saved['stage']}, which began at step "
            f"{saved['first_step']:,}; stages up to that of a checkpoint must stay as they were"
        )


def callbacks_of_stages(module: "VLMModule", trainer: Trainer) -> list[Callback]:
    """What trains a run in stages: nothing where the data module has none.

    Args:
        module: That trains.
        trainer: Of the fit.

    Raises:
        UserError: The Trainer or the module has something that stages can't go together with.
    """
    data = stages_of(trainer)
    if data is None or trainer.state.fn != TrainerFn.FITTING:
        return []
    refuse(data, module, trainer)
    return [StageUnfreezing(data)]


def refuse(data: StagedData, module: "VLMModule", trainer: Trainer) -> None:
    """Refuse what stages can't go together with.

    Raises:
        UserError: Says what to leave out.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = {
        StagedUnfreezing: "leave it out and say train in each stage",
        GradientAccumulationScheduler: "leave it out and say accumulate in each stage",
        BatchSizeFinder: "leave it out and say data.batch_size in each stage",
    }
    for callback in callbacks:
        for kind, advice in others.items():
            if isinstance(callback, kind) and not isinstance(callback, StageUnfreezing):
                raise UserError(f"stages: found {type(callback).__name__} beside them; {advice}")
    if not trainer.fast_dev_run and trainer.max_epochs not in (None, -1, 1000):  # type: ignore[attr-defined]
        raise UserError(
            f"stages: found trainer.max_epochs {trainer.max_epochs}; leave it out, as each stage says its "
            "steps or epochs (trainer.max_steps may end the run earlier)"
        )
    if isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches != 1.0:
        raise UserError(
            f"stages: found trainer.limit_train_batches {trainer.limit_train_batches}; give a whole number "
            "of batches of an epoch, or steps in each stage"
        )
    if module.source.gradient_checkpointing == "auto":
        raise UserError(
            "stages: found model.gradient_checkpointing auto, which would be measured in the first stage "
            "alone; set true or false"
        )
    for _ in data.each():
        if data._data.batching.max_tokens == "auto":
            raise UserError(f"stages.{data.stage.name}: found data.max_tokens auto; give each stage a number")
    _refuse_weights(data, module, callbacks)
    _warn_of_monitors(data, callbacks)


def _refuse_weights(data: StagedData, module: "VLMModule", callbacks: list[Callback]) -> None:
    stages = [stage for stage in data.stages if isinstance(stage, Stage)]
    learned = isinstance(module.task_weights, str) or any(isinstance(one, GradNorm) for one in callbacks)
    for stage in stages:
        if stage.task_weights is not None and learned:
            raise UserError(
                f"stages.{stage.name}.task_weights: found weights beside GradNorm or model.task_weights "
                f"{module.task_weights}, which find them; leave one of the two out"
            )
        changes = [one for one in callbacks if type(one).__name__ == "TokenWeightSchedule"]
        if stage.token_weights is not None and changes:
            raise UserError(
                f"stages.{stage.name}.token_weights: found them beside TokenWeightSchedule, which changes "
                "them at each step; leave one of the two out"
            )


def _warn_of_monitors(data: StagedData, callbacks: list[Callback]) -> None:
    """Say that a best value of one stage is compared with one of another."""
    judges = [one for one in callbacks if isinstance(one, EarlyStopCheckpoint | EarlyStopping)]
    differ = any(stage.data.val is not None for stage in data.stages)
    if judges and differ:
        rank_zero_warn(
            f"stages: {type(judges[0]).__name__} compares values of one stage with those of another, whose "
            "validation data are others; its best one, or its patience, may be of no use"
        )
