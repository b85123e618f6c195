"""What a validation or a test finds, from the first batch to what is logged."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.losses.batch_loss import target_losses
from lightning_vlm.metrics.answers import without_effect
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.scores import Scores
from lightning_vlm.training.finite_scores import FiniteScores
from lightning_vlm.training.skip_checks import EvaluationSkipCheck

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class Evaluation(Callback):
    """Adds up the scores of a validation or test, and logs them over all ranks at its end."""

    def __init__(self, scores: Mapping[str, Sequence[str]] | Sequence[str] | None = None) -> None:
        """Begin without any.

        Args:
            scores: Which scores of answers each task has, see `ScoreChoice`.
        """
        self.choice = ScoreChoice(scores)
        self.answers: list[Prediction] = []
        """The answers of the last validation or test on this process."""
        self.sample_losses: list[Tensor] | None = None
        """The losses of each batch of it, as `Scores.add_losses` returns them; None: they aren't kept."""
        self._scores = Scores(self.choice)
        self._skip_check = EvaluationSkipCheck()
        self._finite = FiniteScores()

    def choose(self, choice: ScoreChoice) -> None:
        """Score answers in another way from the next validation on."""
        self.choice = choice
        self._scores = Scores(choice)

    def add(self, module: "VLMModule", batch: Batch, answers: Sequence[Prediction]) -> None:
        """Add a batch.

        Args:
            module: That is judged, by the cross-entropy of its targets: other losses of training are no part
                of it, so that it compares with and without them.
            batch: Of the validation or test data.
            answers: What the model has generated for it.
        """
        targets, hidden = module.targets(batch), module.hidden_states(batch)
        losses = target_losses(module.model, hidden, targets).token_losses
        module.callbacks.boxes.add_evaluated(module.model, hidden, targets)
        module.callbacks.masks.add_evaluated(hidden, batch, targets)
        self._skip_check.add(batch, len(targets.positions))
        rows = self._scores.add_losses(batch, targets, losses)
        self._finite.add(batch, rows)
        if self.sample_losses is not None and rows is not None:
            self.sample_losses.append(rows)
        self._scores.add_answers(answers)
        self.answers += answers

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        generation = getattr(pl_module, "generation", None)
        if self.choice.is_given and generation is None and stage != "predict":
            rank_zero_warn(
                "model.scores has no effect without model.generation, such as {max_new_tokens: 32}: "
                "nothing is answered in a validation or a test"
            )
        idle = without_effect(generation or {})
        if idle:
            rank_zero_warn(
                f"model.generation: transformers ignores {' and '.join(idle)} here; temperature and the like "
                "need do_sample: true, length_penalty and the like num_beams above 1"
            )

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _start(self) -> None:
        self.answers = []
        self.sample_losses = None if self.sample_losses is None else []
        self._scores.reset()
        self._skip_check.start()
        self._finite.start()

    def _log(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        scores, without_value = self._scores.report()
        if without_value and not trainer.sanity_checking:
            names = "; ".join(without_value)
            rank_zero_warn(f"model.scores: {stage} has no value of {names}")
        if "loss" not in scores:  # on all ranks alike
            self._skip_check.warn_of_no_loss(trainer, stage)
        elif not math.isfinite(scores["loss"]):
            self._finite.warn(trainer, stage, scores["loss"])
        for name, value in scores.items():
            # Every rank has the same value; sync_dist only keeps Lightning from warning.
            in_bar = name in ("loss", "exact_match")
            module.log(f"{stage}/{name}", value, prog_bar=in_bar, sync_dist=trainer.world_size > 1)
