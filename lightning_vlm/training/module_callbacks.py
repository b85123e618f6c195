"""The callbacks that a `VLMModule` brings along: parts of it that follow a run, and what it reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from lightning_vlm.errors import UserError
from lightning_vlm.losses.box_loss import BoxLoss
from lightning_vlm.models.attention import VarlenAttentionCheck
from lightning_vlm.models.mask_head import MaskOptions
from lightning_vlm.models.modes import FitModes
from lightning_vlm.outputs.score_printer import ScorePrinter
from lightning_vlm.outputs.start_report import StartReport
from lightning_vlm.training.box_term import BoxTerm
from lightning_vlm.training.evaluation import Evaluation
from lightning_vlm.training.expert_balance import ExpertBalance
from lightning_vlm.training.finite_check import FiniteCheck
from lightning_vlm.training.gradient_coverage import GradientCoverage
from lightning_vlm.training.learning_rates import LearningRates
from lightning_vlm.training.logits_check import LogitsCheck
from lightning_vlm.training.mask_term import MaskTerm
from lightning_vlm.training.memory import MemoryPlan, OutOfMemoryNote
from lightning_vlm.training.packing_proof import PackingProof
from lightning_vlm.training.run_state import RunState
from lightning_vlm.training.skip_checks import TrainingSkipCheck
from lightning_vlm.training.stages.run import RunInStages


def as_keys(**options: Any) -> dict[str, Any]:
    """Options that are dataclasses as checkpoints keep them.

    >>> as_keys(mask_head=MaskOptions(cells=8), box_loss=None)["mask_head"]["cells"]
    8
    """
    return {name: value and asdict(value) for name, value in options.items()}


@dataclass(frozen=True)
class ModuleCallbacks:
    """One callback for each job beside the loss; Lightning calls them in this order, after those of a user.

    >>> missing = ModuleCallbacks().missing_in(Trainer(logger=False, barebones=True))
    >>> [type(callback).__name__ for callback in missing[:2]]
    ['RunState', 'RunInStages']
    """

    run_state: RunState = field(default_factory=RunState)
    stages: RunInStages = field(default_factory=RunInStages)
    modes: FitModes = field(default_factory=FitModes)
    rates: LearningRates = field(default_factory=LearningRates)
    coverage: GradientCoverage = field(default_factory=GradientCoverage)
    finite: FiniteCheck = field(default_factory=FiniteCheck)
    experts: ExpertBalance = field(default_factory=ExpertBalance)
    boxes: BoxTerm = field(default_factory=BoxTerm)
    masks: MaskTerm = field(default_factory=MaskTerm)
    skip_check: TrainingSkipCheck = field(default_factory=TrainingSkipCheck)
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    out_of_memory: OutOfMemoryNote = field(default_factory=OutOfMemoryNote)
    evaluation: Evaluation = field(default_factory=Evaluation)
    attention_check: VarlenAttentionCheck = field(default_factory=VarlenAttentionCheck)
    logits_check: LogitsCheck = field(default_factory=LogitsCheck)
    packing_proof: PackingProof = field(default_factory=PackingProof)
    start_report: StartReport = field(default_factory=StartReport)
    score_printer: ScorePrinter = field(default_factory=ScorePrinter)

    @classmethod
    def of(
        cls,
        router_aux_loss: float | bool | Literal["auto"],
        box_loss: BoxLoss | None,
        masks: MaskOptions | None,
        scores: Mapping[str, Sequence[str]] | Sequence[str] | None,
    ) -> "ModuleCallbacks":
        """Those of a module with these arguments."""
        return cls(
            experts=ExpertBalance(router_aux_loss),
            boxes=BoxTerm(box_loss),
            masks=MaskTerm(masks),
            evaluation=Evaluation(scores),
        )

    def missing_in(self, trainer: Trainer) -> list[Callback]:
        """Those that a Trainer doesn't have yet."""
        attached = {id(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
        ours = [getattr(self, entry.name) for entry in fields(self)]
        return [callback for callback in ours if id(callback) not in attached]

    def check_attached(self, trainer: Trainer) -> None:
        """Whether a Trainer that is set up has all of them.

        Raises:
            UserError: A subclass of the module has left them out.
        """
        if self.missing_in(trainer):
            raise UserError(
                "configure_callbacks: found none of the VLMModule's own callbacks, without which a run isn't "
                "checked and can't be resumed; return [*super().configure_callbacks(), ...]"
            )
