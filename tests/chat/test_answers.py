"""What chat answers is what predict answers, and the base model beside it is the base model."""

import json
import threading
from pathlib import Path

import pytest
import torch

from lightning_vlm.chat.opened import Where, open_base, open_model
from lightning_vlm.chat.session import Session, Voice, picture
from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Text
from lightning_vlm.errors import UserError
from tests.support.fitted import fit

CPU = Where("cpu")
LONG = {"max_new_tokens": 64, "do_sample": False}


def answers_of(opened, asked: Path, as_base=False) -> list[str]:
    """The answer to each question of a file, each in a conversation of its own."""
    found = []
    for line in asked.read_text().splitlines():
        path, words = json.loads(line)["messages"][0]["content"]
        session = Session([Voice("it", opened, as_base)], LONG, None)
        question = session.question([picture(asked.parent / path["path"]), Text(words["text"])])
        *_, whole = session.ask(session.voices[0], question)
        found.append(whole.text)
    return found


def alone(asked: Path) -> list[str]:
    """The answers of the base model, opened by its name."""
    return answers_of(open_model("drawn-vlm", CPU), asked)


def test_a_checkpoint_answers_as_predict_does(checkpoint, asked, tmp_path):
    words = ["predict", "--model.name_or_path=drawn-vlm", f"--ckpt_path={checkpoint}"]
    words += [f"--data.predict={asked}", f"--out={tmp_path / 'answers.jsonl'}", "--trainer.accelerator=cpu"]
    words += ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    words += ['--model.adapt={"projector": "full", "language": {"lora": {"r": 4}}}']
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = [row["answer"] for row in rows]
    assert answers_of(open_model(str(checkpoint), CPU), asked) == expected
    assert expected != alone(asked)


def test_exported_folders_answer_as_the_checkpoint_does(checkpoint, merged, adapters, asked):
    expected = answers_of(open_model(str(checkpoint), CPU), asked)
    assert answers_of(open_model(str(merged), CPU), asked) == expected
    assert answers_of(open_model(str(adapters), CPU), asked) == expected


@pytest.mark.parametrize("kind", ["checkpoint", "adapters"])
def test_one_model_is_its_base_model_too(kind, request, asked):
    """Turned off and on again, adapters and what trained in full."""
    opened = open_model(str(request.getfixturevalue(kind)), CPU, with_base=True)
    assert open_base(opened, CPU) is opened
    tuned = answers_of(opened, asked)
    before = {name: value.clone() for name, value in opened.model.state_dict().items()}
    assert answers_of(opened, asked, as_base=True) == alone(asked)
    for name, value in opened.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert answers_of(opened, asked) == tuned


def test_the_logits_of_the_base_are_to_the_bit(checkpoint):
    """Not only its words."""
    opened = open_model(str(checkpoint), CPU, with_base=True)
    other = open_model("drawn-vlm", CPU)
    ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        expected = other.model(input_ids=ids).logits
        with opened.as_base():
            assert torch.equal(opened.model(input_ids=ids).logits, expected)
        assert not torch.equal(opened.model(input_ids=ids).logits, expected)


def test_a_merged_model_has_a_second_one_beside_it(merged, asked):
    opened = open_model(str(merged), CPU, with_base=True)
    base = open_base(opened, CPU)
    assert base is not opened
    assert answers_of(base, asked) == alone(asked)


def test_adapters_of_ours_have_a_second_model_beside_them(tmp_path, asked):
    checkpoint = fit(tmp_path, {"language": {"adapter": {"reduction": 8}}})
    opened = open_model(str(checkpoint), CPU, with_base=True)
    base = open_base(opened, CPU)
    assert base is not opened
    assert answers_of(base, asked) == alone(asked)
    ids = torch.arange(5, 40)[None]
    with torch.inference_mode():
        assert not torch.equal(opened.model(input_ids=ids).logits, base.model(input_ids=ids).logits)


def test_turns_before_are_heard(asked):
    """The second answer is that to the whole conversation, as predict gives it."""
    opened = open_model("drawn-vlm", CPU)
    session = Session([Voice("it", opened)], LONG, None)
    voice = session.voices[0]
    for words in ("What is in the picture?", "Which colour was used?"):
        shown = [picture(asked.parent / "0.png")] if not voice.messages else []
        *_, whole = session.ask(voice, session.question([*shown, Text(words)]))
    roles = [message.role for message in voice.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert whole.prediction.prompt.count("\n") == 2
    session.forget()
    assert voice.messages == ()


def test_a_system_prompt_is_asked_with(asked):
    session = Session([Voice("it", open_model("drawn-vlm", CPU))], LONG, "You are terse.")
    *_, whole = session.ask(session.voices[0], session.question([Text("What is this?")]))
    assert whole.prediction.prompt.startswith("system: You are terse.")


def test_answers_come_in_pieces_and_can_be_stopped(asked):
    opened = open_model("drawn-vlm", CPU)
    voice = Voice("it", opened)
    session = Session([voice], LONG, None)
    question = session.question([picture(asked.parent / "0.png"), Text("Describe the picture.")])
    every = list(session.ask(voice, question))
    texts = [one.text for one in every]
    assert len(set(texts)) > 3
    assert all(texts[-1].startswith(text) for text in texts)
    session.forget()
    stop = threading.Event()
    coming = session.ask(voice, question, stop)
    next(coming)
    stop.set()
    *_, last = coming
    assert last.was_stopped
    assert last.text != texts[-1]
    assert texts[-1].startswith(last.text)


def test_a_long_conversation_loses_its_first_rounds(asked):
    """The model has 512 positions; what is left out is said."""
    voice = Voice("it", open_model("drawn-vlm", CPU))
    session = Session([voice], {"max_new_tokens": 8, "do_sample": False}, None)
    for _ in range(12):
        *_, whole = session.ask(voice, session.question([Text("Which colour is it? " * 12)]))
    assert whole.changes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.ckpt", "found no such file"),
        ("empty", "without config.json"),
        ("drawn-vlmm", "did you mean drawn-vlm?"),
    ],
)
def test_what_is_no_model_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_model(name, CPU)


def test_a_folder_of_a_run_names_its_checkpoint(checkpoint):
    with pytest.raises(UserError, match=f"did you mean .*{checkpoint.name}"):
        open_model(str(checkpoint.parent), CPU)


def test_a_base_that_nothing_names_is_asked_for():
    with pytest.raises(UserError, match="write --base MODEL"):
        open_base(open_model("drawn-vlm", CPU), CPU)
