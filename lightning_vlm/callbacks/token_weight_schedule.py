"""The weights of token kinds change in the course of a run."""

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from typing_extensions import override

from lightning_vlm.errors import UserError
from lightning_vlm.losses.weights import KindWeights, WeightCurve
from lightning_vlm.module import VLMModule
from lightning_vlm.training.optimizer_steps import total_steps

DEFAULT_POINTS = (
    {"at": 0.0, "instruction": 1.0},
    {"at": 0.3, "instruction": 0.5},
    {"at": 0.8, "instruction": 0.0},
)
"""Of ten epochs: the first three, the next five and the last two."""


class TokenWeightSchedule(Callback):
    """Changes the weight of each kind of token by progress.

    By default there are three phases, in which instructions weigh 1, then 0.5, then 0.

    It changes the table `VLMModule.token_weights` between optimizer steps, not the data: even if rendered
    ahead, a batch gets its weights as its step begins. Progress is optimizer steps made over those of the
    whole run (`total_steps`), a function of `trainer.global_step`. So all micro-batches of a step and all
    ranks have one table, a resumed run continues exactly, and there is no state to save.

    Validation and test keep `model.token_weights`, so that losses of different times can be compared. The
    table in force is logged as `token_weight/instruction` and so on.

    Pictures and padding always weigh 0, and so does what the chat template writes, unless a point names
    `special`.

    Args:
        points: As in `WeightCurve`: `[{at: 0, instruction: 1.0}, {at: 0.5, instruction: 0.0}]`. None is
            `DEFAULT_POINTS`.
        between: As in `WeightCurve`: `steps`, `linear` or `smooth`.

    Raises:
        UserError: Points that make no sense, alone or with the module's own table; a module that isn't a
            `VLMModule`; a run without an end.

    >>> TokenWeightSchedule().at(0.4, KindWeights())
    KindWeights(special=0.0, instruction=0.5, response=1.0, box=2.0, entity=1.5)
    """

    def __init__(
        self,
        points: list[dict[str, float]] | None = None,
        between: Literal["steps", "linear", "smooth"] = "steps",
    ) -> None:
        super().__init__()
        self.points: Sequence[dict[str, float]] = DEFAULT_POINTS if points is None else points
        self.between = between
        self._curve = WeightCurve(self.points, between)
        self._own: KindWeights | None = None  # the module's own weights, during a fit
        self._now: KindWeights | None = None  # the weights in force, during a fit
        self._total = 1
        self._step = -1

    def at(self, progress: float, table: KindWeights) -> KindWeights:
        """The weights at a progress from 0 to 1; kinds that no point names have theirs of `table`."""
        return self._curve(progress, table)

    def words(self) -> str:
        """All points, for people.

        >>> TokenWeightSchedule().words()
        'instruction goes by steps: 1 at 0%, 0.5 at 30%, 0 at 80%'
        """
        way = {"steps": "by steps", "linear": "linearly", "smooth": "smoothly"}[self.between]
        kinds = []
        for kind, curve in sorted(self._curve.of_kind.items()):
            stations = ", ".join(f"{point.value:g} at {100 * point.at:.4g}%" for point in curve.points)
            kinds.append(f"{kind} goes {way}: {stations}")
        return "; ".join(kinds)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, VLMModule):
            raise UserError(
                f"TokenWeightSchedule: found a {type(pl_module).__name__}; expected a VLMModule, whose "
                "token_weights it changes"
            )
        self._curve.check(pl_module.token_weights)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        self._own = pl_module.token_weights
        self._total = total_steps(trainer)
        self._step = -1
        late = max(point["at"] for point in self.points)
        if self.between == "steps" and late > (self._total - 1) / self._total:
            rank_zero_warn(
                f"TokenWeightSchedule: the point at {100 * late:.4g}% never comes in this run of "
                f"{self._total} steps"
            )
        self._enter(trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: VLMModule, *_: Any) -> None:  # type: ignore[override]
        # When a batch starts it is too late, because VLMDataModule has computed its targets by then.
        self._enter(trainer, pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        self._leave(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        if self._now is not None:
            pl_module.token_weights = self._now

    @override
    def on_train_end(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        self._leave(pl_module)
        self._own = self._now = None

    @override
    def on_exception(  # type: ignore[override]
        self, trainer: Trainer, pl_module: VLMModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def _enter(self, trainer: Trainer, module: VLMModule) -> None:
        """Give the module the table of the step that comes next."""
        step = trainer.global_step
        if self._own is None or step == self._step or step >= self._total:
            return
        self._step = step
        module.token_weights = self._now = self.at(step / self._total, self._own)
        if logs_at(trainer, step):
            metrics = {f"token_weight/{kind}": getattr(self._now, kind) for kind in self._curve.of_kind}
            log_metrics(trainer, metrics, step)

    def _leave(self, module: VLMModule) -> None:
        """Give the module its own table back."""
        if self._own is not None:
            module.token_weights = self._own
