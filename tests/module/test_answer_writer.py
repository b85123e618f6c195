"""Answers of `predict`: all of them in one file, in the order of the data, whatever happens."""

import io
import json
from pathlib import Path

import PIL.Image
import pytest
from lightning.pytorch import Callback

from lightning_vlm import AnswerWriter, VLMDataModule
from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_rows import KEYS, answer_row
from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.render.question import question_of
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.ranking import Candidate
from lightning_vlm.terminal import answer_blocks, say

SEVERAL = {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2}


def user(*parts):
    return Message("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text):
    return Message("assistant", (Text(text),))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    PIL.Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return Image(Path("red.png"), root=folder)


@pytest.fixture(scope="module")
def prompts(listed, picture):
    """Seven prompts, one of which is too long for `max_length`."""
    data = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "blue").save(data, "PNG")
    ask = user(picture, "What colour is it?")
    turns = [
        (ask, assistant("red")),
        (ask, assistant("a red one"), user("Is it ünïcode? \u2028"), assistant("yes")),
        (Message("system", (Text("Be brief."),)), user("Say hello.")),
        (user("long " * 400),),
        (user(Image(data=data.getvalue()), "And", Image(data=data.getvalue()), "this?"), assistant("blue")),
        (user("Say [bold]this[/bold]."),),
        (user("Say \x1b[2Jthat."),),
    ]
    return listed(
        Conversation(messages, task=f"task {place % 2}", source=f"prompts:{place}")
        for place, messages in enumerate(turns)
    )


def predict(module, make_quiet, prompts, writer, **options):
    data = VLMDataModule(predict=prompts, batch_size=2, max_length=300)
    trainer = make_quiet(callbacks=[writer], **options)
    return trainer.predict(module, data)


def rows_of(file):
    # splitlines also ends lines where JSON does not
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def asked(module, make_quiet, prompts, tmp_path_factory):
    """A run with two answers to each prompt: its file, and what `predict` gave."""
    file = tmp_path_factory.mktemp("asked") / "answers.jsonl"
    found = predict(module(generation=SEVERAL), make_quiet, prompts, AnswerWriter(str(file)))
    return file, [answer for batch in found for answer in batch]


def test_the_file_has_what_the_model_answered(asked, picture):
    file, answers = asked
    rows = rows_of(file)
    assert [row["answer"] for row in rows] == [answer.text for answer in answers]
    assert [row["source"] for row in rows] == [f"prompts:{place}" for place in (0, 1, 2, 4, 5, 6)]
    assert all(tuple(row) == KEYS for row in rows)
    assert rows[1]["task"] == "task 1"
    red = str(picture.root / "red.png")
    assert [row["images"] for row in rows] == [[red], [red], [], [None, None], [], []]
    assert [row["prompt"] for row in rows] == [
        "<image> What colour is it?",
        "user: <image> What colour is it?\nassistant: a red one\nuser: Is it ünïcode? \u2028",
        "system: Be brief.\nuser: Say hello.",
        "<image> And <image> this?",
        "Say [bold]this[/bold].",
        "Say \x1b[2Jthat.",
    ]
    assert [row["reference"] for row in rows] == ["red", "yes", None, "blue", None, None]
    for row, answer in zip(rows, answers, strict=True):
        wanted = {"log_prob", "score"} | ({"exact_match", "token_f1"} if row["reference"] else set())
        assert row["scores"].keys() == wanted
        assert row["candidates"] == [one._asdict() for one in answer.candidates]
        assert row["scores"]["score"] == max(one["score"] for one in row["candidates"])
    assert "ünïcode" in file.read_text("utf-8")


def test_two_ranks_write_the_file_of_one(asked, module, make_quiet, prompts, tmp_path, on_two_ranks):
    one = module(generation=SEVERAL)

    def run():
        writer = AnswerWriter(str(tmp_path / "answers.jsonl"))
        found = predict(one, make_quiet, prompts, writer, devices=2, strategy="ddp")
        return [answer.source for batch in found for answer in batch]

    sources = on_two_ranks(run)
    assert all(sources), "else one rank did all"
    # Batches of 2 on two ranks have other companions than on one, which may change the last bits of scores.
    plain, ranks = rows_of(asked[0]), rows_of(tmp_path / "answers.jsonl")
    assert [{**row, "scores": 0, "candidates": 0} for row in ranks] == [
        {**row, "scores": 0, "candidates": 0} for row in plain
    ]
    for row, wanted in zip(ranks, plain, strict=True):
        assert row["scores"] == pytest.approx(wanted["scores"], abs=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_the_end_says_what_came_of_it(module, make_quiet, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one = module(generation={"max_new_tokens": 2})
    predict(one, make_quiet, prompts, AnswerWriter("answers.jsonl", show=6))
    shown = capsys.readouterr().out
    assert "6 in answers.jsonl; 1 skipped" in shown
    assert "exact match" in shown
    assert "Say [bold]this[/bold]." in shown
    assert "\x1b[2J" not in shown
    assert "Say ⟨U+001B⟩[2Jthat." in shown
    assert max(map(len, shown.splitlines())) <= 80

    predict(one, make_quiet, prompts, AnswerWriter("answers.jsonl", show=0))
    assert "answers.previous-1.jsonl" in capsys.readouterr().out
    first, second = (Path(name).read_text() for name in ("answers.previous-1.jsonl", "answers.jsonl"))
    assert first == second


class StopsAt(Callback):
    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            raise KeyboardInterrupt


def test_the_address_of_a_picture_is_named():
    ask = user(Image(url="https://example.org/cat.jpg"), "What is this?")
    assert question_of(Conversation((ask,))).images == ("https://example.org/cat.jpg",)


def test_a_stopped_run_leaves_its_answers(module, make_quiet, prompts, tmp_path, capsys):
    one = module(generation={"max_new_tokens": 2})
    data = VLMDataModule(predict=prompts, batch_size=2, max_length=300)
    file = tmp_path / "answers.jsonl"
    with pytest.raises(SystemExit):
        make_quiet(callbacks=[AnswerWriter(str(file)), StopsAt()]).predict(one, data)
    assert [row["source"] for row in rows_of(file)] == ["prompts:0", "prompts:1", "prompts:2"]
    assert "3 until the run stopped, in" in capsys.readouterr().out


class TakesTheName(Callback):
    """Another process that begins to write to the same file."""

    def __init__(self, file):
        self.file = file

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            other = AnswerFile(self.file)
            other.set_aside()
            other.open()


def test_two_runs_at_once_do_not_mix(module, make_quiet, prompts, tmp_path):
    one = module(generation={"max_new_tokens": 2})
    data = VLMDataModule(predict=prompts, batch_size=2, max_length=300)
    file = tmp_path / "answers.jsonl"
    trainer = make_quiet(callbacks=[AnswerWriter(str(file)), TakesTheName(file)])
    with pytest.raises(UserError, match="another run has begun to write"):
        trainer.predict(one, data)
    assert len(rows_of(tmp_path / "answers.previous-1.jsonl")) == 6
    assert rows_of(file) == []


def test_parts_of_a_stopped_run_are_kept(tmp_path):
    for rank in range(2):
        part = AnswerFile(tmp_path / "answers.jsonl", rank, world=2)
        part.open()
        part.write([answer_row(Prediction(f"a:{rank}", "vqa", "red", None))])
        part.close()
    again = AnswerFile(tmp_path / "answers.jsonl")
    again.check()
    again.set_aside()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.previous-1.rank-0.jsonl",
        "answers.previous-1.rank-1.jsonl",
    ]


@pytest.mark.parametrize("text", ["{}\n", "model: drawn-vlm\n", '{"answer": "red"}\n', "\x00\xff"])
def test_only_answers_give_way(tmp_path, text):
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match="isn't a file of answers"):
        AnswerFile(file).check()
    with pytest.raises(UserError, match="found the folder"):
        AnswerFile(tmp_path).check()
    with pytest.raises(UserError, match="found a file where a folder is needed"):
        AnswerFile(file / "answers.jsonl").check()


def test_numbers_that_json_lacks_and_lone_surrogates(tmp_path):
    candidates = (Candidate("a", float("-inf"), 1, float("nan")),)
    answers = AnswerFile(tmp_path / "answers.jsonl")
    answers.open()
    answers.write([answer_row(Prediction("a:1", "vqa", "\ud800 \x85", "b", candidates))])
    answers.close()
    (row,) = rows_of(answers.path)
    assert row["answer"] == "\ud800 \x85"
    assert row["scores"] == {"exact_match": 0.0, "token_f1": 0.0, "log_prob": None, "score": None}
    assert row["candidates"] == [{"text": "a", "log_prob": None, "length": 1, "score": None}]


def test_long_and_empty_answers_are_readable(capsys):
    rows = [
        answer_row(Prediction("a:1", "vqa", text, None, prompt="q")) for text in ("x" * 5000, "", "y\n" * 50)
    ]
    for block in answer_blocks(rows, 80):
        say(block)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30
    assert sum("…" in line for line in lines) == 2
    assert any("(empty)" in line for line in lines)


def test_answers_of_another_module_are_refused(make_quiet, tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(UserError, match="found predictions of type Tensor"):
        make_quiet(callbacks=[AnswerWriter(str(tmp_path / "answers.jsonl"))]).predict(BoringModel())
