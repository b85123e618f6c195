"""Shows the answers to the same few samples at each validation, so that progress can be watched."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning_vlm_callbacks.runs import run_folder
from typing_extensions import override

from lightning_vlm.callbacks.prediction_table.history import Answer, History, answer_of
from lightning_vlm.callbacks.prediction_table.loggers import log_answers
from lightning_vlm.callbacks.prediction_table.page import write_page
from lightning_vlm.callbacks.prediction_table.samples import Choice, Place, Row, choose, row_of
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.errors import UserError
from lightning_vlm.module import VLMModule


class PredictionTable(Callback):
    """Shows what the model answers to the same few samples at each validation: text, boxes and scores.

    It writes `predictions.html` in the run's folder, one file without anything external, in which the answers
    of the validations stand side by side, with the right and the predicted boxes drawn into the pictures.
    Weights & Biases gets a table at each validation, with boxes that can be switched on and off, and
    TensorBoard a picture of each sample. `validate` writes `predictions_validate.html`.

    The samples are as many of each task as possible, evenly spread over the validation data: they depend on
    the data alone. What was answered is kept in checkpoints, so that a resumed run continues the page. With
    several processes each answers its own samples; all answers are gathered (so many texts, no pictures), and
    the first process opens the pictures and writes.

    It shows answers that the validation makes anyway, and makes none itself: `model.generation` must be set.
    Sanity checks and `fast_dev_run` aren't shown.

    Args:
        samples: How many samples.
        every: Show each validation (1), every second one (2), and so on, the first one always.
        keep: How many validations stay on the page. If there are more they are thinned out evenly; the first
            and the last one are always there.
        dirpath: Where the page goes; None is the run's folder.

    Raises:
        UserError: A number out of range, or a module that isn't a `VLMModule`.

    >>> table = PredictionTable(samples=24, every=2)
    """

    def __init__(self, samples: int = 16, every: int = 1, keep: int = 8, dirpath: str | None = None) -> None:
        super().__init__()
        for name, value, least in (("samples", samples, 1), ("every", every, 1), ("keep", keep, 2)):
            if value < least:
                raise UserError(f"{name}: found {value}; expected at least {least}")
        self.samples, self.every, self.keep, self.dirpath = samples, every, keep, dirpath
        self.page: Path | None = None
        """The page of the last run, once it is written."""
        self._history = History(keep)
        self._validations = 0
        self._choice: Choice | None = None
        self._rows: dict[Place, Row] = {}
        self._answers: dict[Place, Answer] = {}
        self._shows = False
        self._taken = 0

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, VLMModule):
            raise UserError(f"PredictionTable: found a {type(pl_module).__name__}; expected a VLMModule")
        if stage not in (TrainerFn.FITTING, TrainerFn.VALIDATING):
            return
        self._folder = run_folder(trainer, self.dirpath)  # all ranks must call this
        self.page, self._choice, self._rows = None, None, {}
        self._history, self._validations = History(self.keep), 0
        if pl_module.generation is None:
            rank_zero_warn(
                "PredictionTable: model.generation is null, so that validation makes no answers to show; set "
                "it, such as {max_new_tokens: 32}"
            )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        self._taken, self._answers = 0, {}
        dry = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        self._shows = not dry and pl_module.generation is not None
        if not self._shows:
            return
        self._shows = self._validations % self.every == 0
        self._validations += 1
        if self._choice is None:
            self._choice = choose(trainer, self.samples)
            for note in self._choice.notes:
                rank_zero_warn(f"PredictionTable: {note}")

    @override
    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: VLMModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._shows or self._choice is None:
            return
        answers = pl_module.predictions[self._taken :]
        self._taken += len(answers)
        if not isinstance(batch, Batch) or len(batch.places) != len(answers):
            return
        for index, answer in zip(batch.places, answers, strict=True):
            place = Place(dataloader_idx, index)
            if place in self._choice.places:
                self._answers[place] = answer_of(answer, pl_module.callbacks.evaluation.choice)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._shows or self._choice is None:
            return
        answers = self._gathered(trainer, self._choice)
        self._history.add(trainer.global_step, answers)
        if trainer.is_global_zero:
            self._show(trainer, self._choice, answers)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if pl_module.generation is not None and not self._history.validations and not dry:
            rank_zero_warn("PredictionTable: there was no validation, and so there is nothing to show")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations, "history": self._history.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
        self._history.load(state_dict["history"])

    # What is shown

    def _gathered(self, trainer: Trainer, choice: Choice) -> dict[Place, Answer]:
        """The answers of all ranks, in the order in which they are shown."""
        ranks: list[Any] = [self._answers]
        if trainer.world_size > 1:
            ranks *= trainer.world_size
            torch.distributed.all_gather_object(ranks, self._answers)
        together = {place: answer for answers in ranks for place, answer in answers.items()}
        return {place: together[place] for place in choice.places if place in together}

    def _show(self, trainer: Trainer, choice: Choice, answers: dict[Place, Answer]) -> None:
        """On rank zero."""
        missing = len(choice.places) - len(answers)
        if missing and not self._rows:
            rank_zero_info(f"PredictionTable: {missing} of its samples were skipped and have no answer")
        for place in answers:
            source = choice.sources[place.loader]
            if place not in self._rows and source is not None:
                self._rows[place] = row_of(place, source[place.item])
        rows = [self._rows[place] for place in choice.places if place in self._rows]
        validates = trainer.state.fn == TrainerFn.VALIDATING
        page = self._folder / ("predictions_validate.html" if validates else "predictions.html")
        write_page(page, rows, self._history.validations)
        self.page = page
        log_answers(trainer, rows, answers)
