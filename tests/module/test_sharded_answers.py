"""What a model in pieces (FSDP2) answers: validation, `predict` and their files are those of one process."""

import json
import re
from pathlib import Path

import pytest

from lightning_vlm import AnswerWriter, PredictionTable, VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, make_module, make_trainer

OPTIONS = {"generation": {"max_new_tokens": 5}}


def answer(ranks, model, folder, written=None):
    """Train a step where nothing was written, then validate and predict; what was scored and answered."""
    module = make_module(Fit(model, "llava", options=OPTIONS))
    questions = Drawn("val", size=7)
    data = VLMDataModule(
        train=Drawn("train", size=4),
        val=questions,
        predict=questions,
        batch_size=2,
        eval_batch_size=2,
        seed=0,
    )
    writer = AnswerWriter(str(folder / "answers.jsonl"), show=0)
    callbacks = [writer, PredictionTable(samples=4, dirpath=str(folder))]
    trainer = make_trainer(ranks, max_steps=1, callbacks=callbacks, default_root_dir=folder)
    if written is None:
        written = folder / "step.ckpt"
        trainer.fit(module, data)
        trainer.save_checkpoint(written)
    trainer.validate(module, data, ckpt_path=written, verbose=False, weights_only=True)
    scores = {name: value.item() for name, value in trainer.callback_metrics.items() if "val/" in name}
    trainer.predict(module, data, ckpt_path=written, return_predictions=False, weights_only=True)
    return scores


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def pages(file: Path):
    """A page of a table, without the step that it shows."""
    return re.split(r"step 0|step 1|after \d steps?", file.read_text())


@pytest.fixture(scope="module")
def answered(model_folder, tmp_path_factory):
    """The folder and the scores of two processes, and of one that loads what they trained."""
    model, folder = Path(model_folder("llava")), tmp_path_factory.mktemp("answers")
    two, one = folder / "two", folder / "one"
    scores = call_on_ranks(answer, 2, model, two)
    (alone,) = call_on_ranks(answer, 1, model, one, two / "step.ckpt", ranks=1)
    return two, one, scores, alone


def test_scores_are_those_of_one_process(answered):
    _, _, scores, alone = answered
    assert "val/loss" in alone
    for found in scores:
        assert found == pytest.approx(alone, rel=1e-5)


def test_answers_are_those_of_one_process(answered):
    two, one, *_ = answered
    assert len(rows_of(one)) == 7
    assert rows_of(two) == rows_of(one)


def test_the_table_shows_the_same_samples_and_answers(answered):
    two, one, *_ = answered
    (page,) = one.glob("*.html")
    assert pages(two / page.name) == pages(page)
