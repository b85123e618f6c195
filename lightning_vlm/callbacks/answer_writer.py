"""Where the answers of `predict` go: a file, and the first few to the terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_vlm_callbacks.runs import run_folder
from rich import get_console
from typing_extensions import override

from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.score_table import heading, score_table
from lightning_vlm.metrics.scores import Scores
from lightning_vlm.terminal import answer_blocks, print_line, print_lines, say, short_path, wrapped

NAME = "answers.jsonl"
"""The file in a run's folder."""
SHOWN = 3
"""How many answers are printed."""
NAMED = 5
"""How many of those that were skipped are named."""


class AnswerWriter(Callback):
    """Writes the answers of `Trainer.predict` to a file as they come, and shows the first few at the end.

    Each line is a JSON object with `source`, `task`, `prompt`, `images`, `reasoning` (null if there is none),
    `answer`, `reference` (null if unknown), `scores`, `candidates`, and the `boxes` of the answer in pixels
    of the pictures as they came, with what was left `unread`. Lines are in the order of the data, on any
    number of processes: while they run, each has a file of its own beside the final one. A run that is
    stopped leaves the answers that it has. The command `lightning-vlm predict` adds this callback.

    Args:
        out: The file; None is `answers.jsonl` in the run's folder. A file of answers that is already there
            is renamed, not overwritten.
        show: How many answers to print at the end.

    Raises:
        UserError: The file can't be written, something that holds no answers has its name, or the module
            gives something else than answers.

    Example::

        trainer = Trainer(callbacks=[AnswerWriter("answers.jsonl")])
        data = VLMDataModule(predict="questions.jsonl")
        trainer.predict(VLMModule("drawn-vlm"), data, return_predictions=False)
    """

    def __init__(self, out: str | None = None, show: int = SHOWN) -> None:
        if show < 0:
            raise UserError(f"show: found {show}; expected at least 0")
        self.out, self.show = out, show
        self._file: AnswerFile | None = None
        self._scores = Scores()
        self._skipped: list[str] = []
        self._end: _End | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != TrainerFn.PREDICTING:
            return
        folder = run_folder(trainer)  # all ranks must call this
        path = Path(self.out).expanduser() if self.out else folder / NAME
        choice = _choice_of(pl_module)
        self._scores = Scores(choice)
        self._file = AnswerFile(path, trainer.global_rank, trainer.world_size, choice)
        self._file.check()
        _refuse_own_data(path, trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._file is not None
        self._scores.reset()
        self._skipped = []
        if trainer.is_global_zero:
            aside = self._file.set_aside()
            if aside is not None:
                print_line("note", f"the answers of an earlier run are now in {short_path(aside)}")
            print_line("answers", f"go to {short_path(self._file.path)} as they come")
        trainer.strategy.barrier("answers of an earlier run are out of the way")
        self._file.open()

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._file is not None
        answers = [] if outputs is None else outputs
        if not isinstance(answers, list) or not all(isinstance(answer, Prediction) for answer in answers):
            raise UserError(
                f"AnswerWriter: found predictions of type {type(outputs).__name__}; expected those of a "
                "VLMModule, which are lists of Prediction"
            )
        self._file.write(answers)
        self._scores.add_answers(answers)
        if isinstance(batch, Batch):
            self._skipped += map(str, batch.skipped)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._file is not None
        kept_name = self._file.close()
        if not trainer.strategy.reduce_boolean_decision(kept_name, all=True):
            path, self._file = self._file.path, None
            raise UserError(
                f"out: another run has begun to write to {path}, so that the answers of this one "
                "have another name beside it now; give each run a file of its own"
            )
        scores = self._scores.compute()  # all ranks must call this
        ranks = _gathered(trainer, (self._file.lengths, self._skipped))
        if not trainer.is_global_zero:
            return
        self._file.join([lengths for lengths, _ in ranks])
        count = sum(sum(lengths) for lengths, _ in ranks)
        skipped = [error for _, errors in ranks for error in errors] + _skipped_by_reader(trainer)
        self._end = _End(count, skipped, scores)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._file is None or not self._file.lengths:
            return
        self._file.close()
        written = sum(self._file.lengths)
        print_line("answers", f"{written:,} until the run stopped, in {short_path(self._file.here)}")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._file is None:
            return
        self._file.close()
        if self._end is not None:  # Not before, where the progress bar may still be on the screen.
            self._print_summary(self._file, self._end)
        self._file = self._end = None

    def _print_summary(self, file: AnswerFile, end: "_End") -> None:
        for block in answer_blocks(file.first(self.show), get_console().width):
            say("", block)
        if self.show and end.answers:
            say("")
        of_all = {name: value for name, value in end.scores.items() if "/" not in name}
        if of_all:
            texts = [f"{heading(name)} {value:.3f}" for name, value in of_all.items()]
            print_line("scores", ", ".join(texts))
        if len(end.scores) > len(of_all):
            table = score_table(
                "Scores", {f"test/{name}": value for name, value in end.scores.items()}, "test"
            )
            if table is not None:
                say(table)
        print_lines("skipped", wrapped(_first(end.skipped)))
        more = f"; {len(end.skipped):,} skipped" if end.skipped else ""
        print_line("answers", f"{end.answers:,} in {short_path(file.path)}{more}")


class _End(NamedTuple):
    """What a run came to: how many answers, the errors of what was skipped, and the scores."""

    answers: int
    skipped: list[str]
    scores: dict[str, float]


def _gathered(trainer: Trainer, own: Any) -> list[Any]:
    """What each rank has. All ranks must call it."""
    ranks = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(ranks, own)
    return ranks


def _first(errors: Sequence[str]) -> Iterator[str]:
    """The first errors, and how many more there are."""
    yield from errors[:NAMED]
    if len(errors) > NAMED:
        yield f"and {len(errors) - NAMED:,} more"


def _choice_of(module: LightningModule) -> ScoreChoice:
    """The scores that a module has chosen for each task."""
    evaluation = getattr(getattr(module, "callbacks", None), "evaluation", None)
    return getattr(evaluation, "choice", None) or ScoreChoice()


def _refuse_own_data(path: Path, trainer: Trainer) -> None:
    """A file can't be answered and written at once."""
    given = getattr(getattr(trainer, "datamodule", None), "given", {}).get("predict")
    if isinstance(given, str | Path) and Path(given).resolve() == path.resolve():
        raise UserError(f"out: found {path}, which data.predict reads; name another file")


def _skipped_by_reader(trainer: Trainer) -> list[str]:
    """The errors of samples that were skipped when the data was opened; every rank knows them all."""
    source = getattr(getattr(trainer, "datamodule", None), "sources", {}).get("predict")
    return [] if source is None else [str(error) for error in source.skipped]
