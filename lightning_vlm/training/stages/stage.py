"""A stage of a run: its length, its data, what trains in it, at which rates, and what it weighs."""

from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.stages.settings import DataStage
from lightning_vlm.data.stages.staged_data import StagedData
from lightning_vlm.errors import UserError
from lightning_vlm.losses.tasks import check_weighting
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.optim import Schedule, lr_lambda


@dataclass(frozen=True, kw_only=True)
class Stage(DataStage):
    """A stretch of a run with its own data, trainable parts, rates and weights.

    What a stage doesn't say is as at the top of the config. Its keys `name`, `steps` or `epochs`,
    `accumulate` and `data` are those of `DataStage`.

    Args:
        train: Selectors of what trains, of all that `model.adapt` lets train; or selector -> scale of its
            learning rate. None is all of it.
        learning_rate: Of all that trains; None is as `model.optimizer` and `model.learning_rates` say.
        learning_rates: Selector -> its own learning rate.
        schedule: The factor on learning rates over the stage; None is `model.schedule`, over the stage.
        reset_optimizer: Begin with an optimizer that remembers nothing, as a new run would. Otherwise what
            goes on training goes on with its momentum.
        token_weights: The weight of each kind of token; None is `model.token_weights`.
        task_weights: The weight of each task; None is `model.task_weights`.
        scores: Which scores answers have; None is `model.scores`.

    Raises:
        UserError: A value that makes no sense.

    >>> Stage(name="align", steps=100, train=["projector"], learning_rate=1e-3).scales
    {'projector': 1.0}
    """

    train: list[str] | dict[str, float] | None = None
    learning_rate: float | None = None
    learning_rates: dict[str, float] | None = None
    schedule: Schedule | None = None
    reset_optimizer: bool = False
    token_weights: KindWeights | None = None
    task_weights: dict[str, float] | None = None
    scores: dict[str, list[str]] | list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"stages.{self.name}"
        rates = {"learning_rate": self.learning_rate, **(self.learning_rates or {})}
        for key, rate in rates.items():
            if rate is not None and not 0 < rate < 1e3:
                raise UserError(f"{where}: found {key} {rate}; expected a learning rate above 0")
        try:
            check_weighting(self.task_weights)
            ScoreChoice(self.scores)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    @property
    def scales(self) -> dict[str, float]:
        """Selector -> scale of its learning rate, of what trains."""
        if self.train is None:
            return {"*": 1.0}
        if isinstance(self.train, dict):
            return dict(self.train)
        return dict.fromkeys(self.train, 1.0)


def stages_of(trainer: Trainer | None) -> StagedData | None:
    """The stages of a Trainer's run; None where it has none."""
    data = getattr(trainer, "datamodule", None)
    return data.stages if isinstance(data, VLMDataModule) else None


def stage_factor(stages: StagedData, default: Schedule, step: int) -> float:
    """The factor on learning rates at a step of a run in stages.

    Args:
        stages: Of the run.
        default: The schedule of stages that have none of their own.
        step: How many steps were made before.
    """
    number = stages.plan.at_step(step)
    span, stage = stages.plan.spans[number], stages.stages[number]
    schedule = getattr(stage, "schedule", None) or default
    return lr_lambda(schedule, span.steps)(step - span.first_step)
