"""What a stage of a run says of its length and its data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lightning_vlm.data.batch.batching_checks import Mode
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.negatives import Negatives
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StageData:
    """The data of a stage. All keys are those of `VLMDataModule`; what isn't given is as under `data`."""

    train: Conversations | str | None = None
    val: Conversations | str | None = None
    image_root: str | None = None
    skip: str | None = None
    batch_size: int | None = None
    eval_batch_size: int | None = None
    batching: Mode | None = None
    max_tokens: int | None = None
    max_patches: int | None = None
    max_length: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    pixels_by_detail: bool | None = None
    sampling: TaskSampling | Literal["uniform", "grouped"] | None = None
    shuffle: bool | None = None
    seed: int | None = None
    video: VideoSampling | None = None
    negatives: Negatives | bool | None = None
    answer_tokens: int | None = None
    system_prompts: dict[str, str] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What it says."""
        each = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in each.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class DataStage:
    """A stage of a run, as a data module sees it.

    Args:
        name: One word, for people, reports and `--stage`.
        steps: How many optimizer steps it has; or else `epochs`.
        epochs: How often it sees its training data; 0.5 is half of it.
        accumulate: Micro-batches of an optimizer step; None is `trainer.accumulate_grad_batches`.
        data: Its data.

    Raises:
        UserError: Neither or both of `steps` and `epochs`, or one that isn't above 0.
    """

    name: str
    steps: int | None = None
    epochs: float | None = None
    accumulate: int | None = None
    data: StageData = field(default_factory=StageData)

    def __post_init__(self) -> None:
        where = f"stages.{self.name}"
        if (self.steps is None) == (self.epochs is None):
            found = "neither" if self.steps is None else "both"
            raise UserError(f"{where}: found {found} of steps and epochs; expected one, such as steps: 2000")
        for key in ("steps", "epochs", "accumulate"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"{where}.{key}: found {value}; expected a number above 0")


def check_names(stages: Sequence[DataStage]) -> None:
    """Check that each stage has a name of its own.

    Raises:
        UserError: There are none, or two have one name.
    """
    if not stages:
        raise UserError("stages: found an empty list; expected at least one stage, or no key stages")
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"stages: found {names.count(name)} with the name {name}; give each its own")
