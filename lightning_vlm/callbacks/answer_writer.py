"""Where the answers of `predict` go: a file, and the first few to the terminal."""

import random
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_vlm_callbacks.runs import run_folder
from typing_extensions import override

from lightning_vlm.callbacks.answer_data import (
    choice_of,
    gathered,
    kept_answers,
    loaders,
    may_go_on,
    refuse_own_data,
    shown,
    shown_answers,
    skipped_by_reader,
    stream_of,
)
from lightning_vlm.callbacks.answer_facts import facts_of
from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_page import MOST_SHOWN, first_places, save_page
from lightning_vlm.callbacks.answer_progress import Step
from lightning_vlm.callbacks.answer_rows import answer_row
from lightning_vlm.callbacks.answer_store import AnswerStore, Unfinished, unfinished_beside
from lightning_vlm.callbacks.answer_stream import STDOUT, AnswerStream, aligned
from lightning_vlm.callbacks.answer_summary import End, print_end
from lightning_vlm.callbacks.kept_answers import NAME as KEPT
from lightning_vlm.callbacks.kept_answers import KeptAnswers, holds_conversations, total
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.keep_rule import KeepRule
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.scores import Scores
from lightning_vlm.module import VLMModule
from lightning_vlm.terminal import print_line, short_path

NAME = "answers.jsonl"
"""The file in a run's folder."""
SHOWN = 3
"""How many answers are printed."""


class AnswerWriter(Callback):
    """Writes the answers of `Trainer.predict` to a file as they come, and shows the first few at the end.

    Each line is a JSON object with `id`, `source`, `task`, `prompt`, `images`, `reasoning` (null if there is
    none), `answer`, `reference` (null if unknown), `scores`, `candidates`, the `boxes` of the answer and the
    `right_boxes` in pixels of the pictures as they came, and what was left `unread`. Lines are in the order
    of the data, on any number of processes: while they run, each has a file of its own beside the final one.
    A run that is stopped leaves the answers that it has, and how far it has come. The command
    `lightning-vlm predict` adds this callback.

    Args:
        out: The file; None is `answers.jsonl` in the run's folder. A file of answers that is already there
            is renamed, not overwritten.
        show: How many answers to print at the end.
        resume: Go on where the same run was stopped: the same questions, model and settings, by files that
            lie beside the answers. Then `predict` doesn't return the answers from before.
        keep: Which answers become training data, in `kept.jsonl` beside the file, such as `score >= 0.9`; see
            `KeepRule`. Of several answers to a prompt each is judged, and of equal ones one is kept.
        page: Write the first answers with their pictures and boxes to a page beside the file, `answers.html`.

    Raises:
        UserError: The file can't be written, something that holds no answers has its name, or the module
            gives something else than answers.

    Example::

        trainer = Trainer(callbacks=[AnswerWriter("answers.jsonl")])
        data = VLMDataModule(predict="questions.jsonl")
        trainer.predict(VLMModule("drawn-vlm"), data, return_predictions=False)
    """

    def __init__(
        self,
        out: str | None = None,
        show: int = SHOWN,
        resume: bool = False,
        keep: str | None = None,
        page: bool = False,
    ) -> None:
        if show < 0:
            raise UserError(f"show: found {show}; expected at least 0")
        self.out, self.show, self.resume, self.page = out, show, resume, page
        self._rule = None if keep is None else KeepRule(keep)
        self._kept: KeptAnswers | None = None
        self._store: AnswerStore | None = None
        self._scores = Scores()
        self._choice = ScoreChoice()
        self._goes_on = False
        self._before = 0
        self._draws, self._seed = False, 0
        self._end: End | None = None

    # Hooks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != TrainerFn.PREDICTING:
            return
        folder = run_folder(trainer)  # all ranks must call this
        streams = stream_of(trainer) is not None
        path = Path(self.out).expanduser() if self.out else STDOUT if streams else folder / NAME
        self._choice = choice_of(pl_module)
        self._store = self._store_at(Path(path), trainer)
        self._store.keeps_progress &= not streams
        for file in self._store.files:
            file.check()
        refuse_own_data(Path(path), trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._store is not None
        self._scores = Scores(self._choice)
        if self._rule is not None:
            self._kept = kept_answers(self._rule, self._choice, trainer, pl_module)
        self._draws = bool((getattr(pl_module, "generation", None) or {}).get("do_sample"))
        self._seed = torch.initial_seed()
        facts = {}
        if self._store.keeps_progress and isinstance(pl_module, VLMModule):
            facts = facts_of(trainer, pl_module, **self._facts())
        self._goes_on = self._find_unfinished(trainer, facts)
        if not self._goes_on and trainer.is_global_zero:
            aside = self._store.set_aside()
            if aside is not None:
                print_line("note", f"the answers of an earlier run are now in {short_path(aside)}")
        trainer.strategy.barrier("answers of an earlier run are out of the way")
        self._store.begin(facts, goes_on=self._goes_on)
        self._before = len(self._store.steps)
        for step in self._store.steps:
            self._scores.add(step.sums)
        counts = gathered(trainer, sum(self._store.answers.lengths))
        if self._goes_on:
            for loader in loaders(trainer):
                position = loader.position_behind(self._before)
                loader.load_state_dict({**loader.state_dict(), "position": position})
        if trainer.is_global_zero:
            behind = f", behind the {sum(counts):,} that an earlier run left" if self._goes_on else ""
            print_line("answers", f"go {shown(self._store.answers.path, 'to')} as they come{behind}")

    @override
    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._draws:
            # What is drawn depends on the place in the data alone, so that a run that goes on draws the same.
            place = f"{self._seed} {self._before + batch_idx} {trainer.global_rank}"
            torch.manual_seed(random.Random(place).getrandbits(63))

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
        assert self._store is not None
        answers = [] if outputs is None else outputs
        if not isinstance(answers, list) or not all(isinstance(answer, Prediction) for answer in answers):
            raise UserError(
                f"AnswerWriter: found predictions of type {type(outputs).__name__}; expected those of a "
                "VLMModule, which are lists of Prediction"
            )
        scores = Scores(self._choice)
        scores.add_answers(answers)
        places, skipped = ((), ()) if not isinstance(batch, Batch) else (batch.places, batch.skipped)
        step = Step((), (), tuple(places), tuple(map(str, skipped)), scores.state())
        self._scores.add(step.sums)
        rows: list[Mapping[str, Any]] = [answer_row(answer, self._choice) for answer in answers]
        stream = stream_of(trainer)
        if stream is not None:
            rows = aligned(rows, places, skipped, stream.ids)
        if self._kept is None:
            self._store.write([rows], step)
            return
        readers = batch.readers or [None] * len(answers)
        kept = [self._kept.of(*one) for one in zip(answers, places, readers, strict=True)]
        rows = [one.marked(row) for one, row in zip(kept, rows, strict=True)]
        step = step._replace(counts=total([one.counts for one in kept]))
        self._store.write([rows, [row for one in kept for row in one.rows]], step)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        store = self._store
        assert store is not None
        kept_name = store.close()
        if not trainer.strategy.reduce_boolean_decision(kept_name, all=True):
            path, self._store = store.answers.path, None
            raise UserError(
                f"out: another run has begun to write to {path}, so that the answers of this one "
                "have another name beside it now; give each run a file of its own"
            )
        scores = self._scores.compute()  # all ranks must call this
        skipped = [error for step in store.steps for error in step.skipped]
        counts = total([step.counts for step in store.steps])
        places = list(islice((place for step in store.steps for place in step.places), MOST_SHOWN))
        ranks = gathered(trainer, ([file.lengths for file in store.files], skipped, counts, places))
        if not trainer.is_global_zero:
            return
        store.finish([lengths for lengths, *_ in ranks])
        lines = sum(sum(lengths[0]) for lengths, *_ in ranks)
        kept = []
        if self._kept is not None:
            kept = self._kept.lines(total([counts for _, _, counts, _ in ranks]), store.files[1].path)
        asked = first_places([lengths[0] for lengths, *_ in ranks], [of_rank for *_, of_rank in ranks])
        drawn = shown_answers(trainer, store.answers.first(MOST_SHOWN), asked)
        page = save_page(store.answers.path, drawn, lines) if self.page and drawn else None
        self._end = End(
            where=shown(store.answers.path),
            answers=lines - len(skipped) if stream_of(trainer) else lines,
            first=store.answers.first(self.show),
            skipped=[error for _, errors, _, _ in ranks for error in errors] + skipped_by_reader(trainer),
            scores=scores,
            kept=kept,
            pictures=[one.picture for one in drawn[: self.show]],
            page=None if page is None else short_path(page),
        )

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._store is None or not self._store.steps:
            return
        self._store.close()
        answers = self._store.answers
        print_line(
            "answers", f"{sum(answers.lengths):,} until the run stopped, in {short_path(answers.here)}"
        )
        if self.resume and self._store.keeps_progress and may_go_on(trainer) and trainer.is_global_zero:
            print_line("", "the same command goes on from there")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._store is None:
            return
        self._store.close()
        if self._end is not None:  # Not before, where the progress bar may still be on the screen.
            print_end(self._end)
        self._store = self._end = None

    # Going on

    def _store_at(self, path: Path, trainer: Trainer) -> AnswerStore:
        if str(path) == STDOUT:
            if trainer.world_size > 1:
                raise UserError("out: several processes can't write to standard output; name a file")
            if self._rule is not None:
                raise UserError("keep: it needs a file of questions, and one of answers; name them")
            return AnswerStore([AnswerStream()], keeps_progress=False)
        ranks = trainer.global_rank, trainer.world_size
        files = [AnswerFile(path, *ranks)]
        if self._rule is not None:
            files.append(AnswerFile(path.with_name(KEPT), *ranks, is_ours=holds_conversations))
        return AnswerStore(files)

    def _facts(self) -> dict[str, Any]:
        """The options of this callback that its lines depend on."""
        seed = self._seed if self._draws else None
        rule = self._rule and self._rule.text
        return {"model.scores": str(self._choice), "seed_everything": seed, "keep": rule}

    def _find_unfinished(self, trainer: Trainer, facts: dict[str, Any]) -> bool:
        """Whether this is a run that was stopped; then the store is where that wrote. All ranks call it."""
        assert self._store is not None
        if not self.resume or not facts or not may_go_on(trainer):
            return False
        if self.out is None:
            path = self._store.answers.path
            found = None
            if trainer.is_global_zero and not self._store.unfinished(facts).exists:
                found = unfinished_beside(path.parent, path.name, facts)
            found = trainer.strategy.broadcast(found)
            if found is not None:
                self._store = self._store_at(found, trainer)
        ranks: list[Unfinished] = gathered(trainer, self._store.unfinished(facts))
        differs = [name for one in ranks for name in one.differs]
        if differs and trainer.is_global_zero:
            names = ", ".join(dict.fromkeys(differs))
            print_line("note", f"an earlier run that was stopped isn't gone on with: {names} changed")
        return any(one.steps for one in ranks) and not differs
