"""Scores that are chosen, from the data to the log, for a model that knows the answers."""

import json
from dataclasses import replace

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from lightning_vlm import AnswerWriter, VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from tests.support import tiny

NAMES = ["acc@0.5", "acc@0.75", "acc@0.8", "miou", "map", "pointing", "mask_miou", "mask_ciou"]


class Oracle(VLMModule):
    """Answers what is right, and reads it as it would a model's answer."""

    def predict_step(self, batch, batch_idx):
        answers = super().predict_step(batch, batch_idx)
        for row, answer in enumerate(answers):
            reader = batch.readers[row]
            found = None if reader is None else reader.read(answer.reference)
            answers[row] = answer._replace(text=answer.reference, found=found)
        return answers


@pytest.fixture
def oracle(folder):
    def make(**options):
        template = {"chat_template": "plain"} if tiny.FAMILIES["llava"].template is None else {}
        generation = options.pop("generation", {"max_new_tokens": 2})
        return Oracle(str(folder("llava")), adapt="lora", generation=generation, **template, **options)

    return make


@pytest.fixture
def source(listed):
    def sample(place, conversation):
        more = {}
        if conversation.task == "vqa":
            more = {"references": ("right", *(conversation.messages[-1].parts[0].text,) * 4)}
        return replace(conversation, level="object" if place % 2 else "scene", **more)

    drawn = Drawn("val", size=8, tasks=["vqa", "grounding"])
    return listed([sample(place, conversation) for place, conversation in enumerate(drawn)])


def test_an_oracle_has_all_scores_of_each_task_and_level(oracle, source, make_quiet, capsys):
    one = oracle(scores={"grounding": NAMES, "vqa": ["vqa_accuracy", "anls"]})
    (found,) = make_quiet().test(one, VLMDataModule(test=source, batch_size=3))
    right = {
        name: value for name, value in found.items() if name.split("/")[1] in (*NAMES, "vqa_accuracy", "anls")
    }
    assert right == {name: pytest.approx(1.0, abs=0.02) for name in right}, "but for whole thousandths"
    assert {f"test/{name}/grounding" for name in NAMES} | {"test/vqa_accuracy/vqa"} <= right.keys()
    assert {"test/anls/level=object", "test/miou/level=scene", "test/loss/level=scene"} <= found.keys()
    shown = capsys.readouterr().out
    assert "level=object" in shown


def test_early_stopping_monitors_a_chosen_score(oracle, source, make_quiet, recwarn):
    stop = EarlyStopping("val/acc@0.75/grounding", mode="max", patience=1, strict=True)
    trainer = make_quiet(max_epochs=5, callbacks=[stop], limit_train_batches=1)
    one = oracle(scores={"grounding": ["acc@0.75"], "caption": ["bleu"]})
    trainer.fit(one, VLMDataModule(train=source, val=source, batch_size=4))
    assert trainer.current_epoch == 2, "the score is 1 from the first epoch on"
    said = [str(warning.message) for warning in recwarn if "model.scores" in str(warning.message)]
    assert said[0] == "model.scores: val has no value of bleu/caption (no answer is of the task caption)"


def test_without_answers_a_choice_has_no_effect(oracle, source, make_quiet):
    one = oracle(scores=["anls"], generation=None)
    with pytest.warns(UserWarning, match=r"model.scores has no effect without model.generation"):
        (found,) = make_quiet().validate(one, VLMDataModule(val=source), verbose=False)
    assert "val/anls" not in found


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_what_matters_only_to_drawn_answers_is_said(stage, oracle, source, make_quiet):
    one = oracle(generation={"max_new_tokens": 2, "temperature": 0.7, "top_p": 1.0})
    data = VLMDataModule(val=source, predict=source, batch_size=4)
    run = getattr(make_quiet(limit_val_batches=1, limit_predict_batches=1), stage)
    with pytest.warns(UserWarning, match="transformers ignores temperature here; temperature and"):
        run(one, data)


def test_predict_writes_the_chosen_scores(oracle, source, make_quiet, tmp_path, capsys):
    one = oracle(scores={"grounding": ["miou"], "vqa": ["anls"]})
    out = tmp_path / "answers.jsonl"
    data = VLMDataModule(predict=source, batch_size=3)
    make_quiet(callbacks=[AnswerWriter(str(out))]).predict(one, data, return_predictions=False)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert row["scores"] == {
            "miou" if row["task"] == "grounding" else "anls": pytest.approx(1.0, abs=0.02)
        }
    assert "anls 1.000, miou 0.99" in capsys.readouterr().out


def test_an_unknown_score_is_refused_before_anything_is_loaded(oracle):
    with pytest.raises(UserError, match=r"model\.scores: there is no score mio; did you mean miou"):
        oracle(scores=["mio"])
