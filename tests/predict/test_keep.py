"""Rejection sampling: good answers become training data that `fit` reads."""

from pathlib import Path

import pytest

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.conversation import Conversation, Message
from lightning_vlm.data.parts import Box, Image, Nothing, Point, Region, Text, Video
from lightning_vlm.data.read.own_rows import own_row
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.data.tools import ToolCall
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.keep_rule import KeepRule
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice

DRAW = ("--model.generation", "{max_new_tokens: 3, temperature: 1.5}", "--num", "6")


def test_good_answers_become_training_data(questions, predict, rows_of, capsys):
    words = ("--data.predict", "questions.jsonl", *DRAW, "--data.batch_size", "2")
    assert predict(*words, "--keep", "score >= 1 and token_f1 > .5", "--out", "runs/a.jsonl") == 0
    answers, kept = rows_of("runs/a.jsonl"), rows_of("runs/kept.jsonl")
    drawn = [one for row in answers for one in row["candidates"]]
    assert len(drawn) == 30
    for one in drawn:
        assert one["kept"] == (one["scores"]["exact_match"] == 1.0 and one["scores"]["token_f1"] > 0.5)
    texts = {row["id"]: {one["text"] for one in row["candidates"] if one["kept"]} for row in answers}
    found = [(row["id"], row["messages"][-1]["content"][0]["text"]) for row in kept]
    assert found == [(name, text) for name, of in texts.items() for text in dict.fromkeys(sorted(of))]
    assert 0 < len(found) <= 5
    none = sum(not of for of in texts.values())
    many = sum(one["kept"] for one in drawn)
    shown = " ".join(capsys.readouterr().out.split())
    summary = f"{len(kept)} of 30 answers, to {5 - none} of 5 prompts; {many - len(kept)} duplicates dropped"
    assert f"kept {summary}" in shown
    assert f"--data.train runs/kept.jsonl --data.image_root {Path.cwd()}" in shown

    # fit reads it as any data, and what it learns is the answer.
    data = VLMDataModule(
        train="runs/kept.jsonl",
        image_root=str(Path.cwd()),
        shuffle=False,
        processor=processor(),
        batch_size=5,
    )
    batch = next(iter(data.train_dataloader()))
    assert batch.skipped == []
    learned = batch.inputs["input_ids"][0][batch.kinds[0] == int(Kind.RESPONSE)]
    assert data.processor.tokenizer.decode(learned, skip_special_tokens=True).strip() == found[0][1]

    # The same seed draws the same.
    assert predict(*words, "--keep", "score >= 1 and token_f1 > .5", "--out", "runs/a.jsonl") == 0
    assert rows_of("runs/kept.jsonl") == kept == rows_of("runs/kept.previous-1.jsonl")


def processor():
    return VLMModule("drawn-vlm").processor


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep", "score"), "keep: found 'score'; expected a score, one of >= <= == != > <, and a number"),
        (("--keep", "scoer > 1"), "keep: there is no score scoer; did you mean score?"),
        (("--keep", "exact_mach > 1"), "keep: there is no score exact_mach; did you mean exact_match?"),
        (("--keep", "score > 1 or score < 1"), "keep: found 'score > 1 or score < 1'; expected"),
        (("--keep", "__import__('os') > 1"), "keep: found"),
        (("--keep", "score >= 1 and"), "keep: found 'nothing'"),
        (("--num", "0"), "num: found 0; expected at least 1"),
        (("--num", "4", "--model.generation", "{temperature: 0}"), "num: found a temperature of 0"),
        (("--num", "4", "--model.generation", "{num_beams: 4}"), "leave num_beams out"),
        (("--keep", "score > 0", "--out", "-"), "keep: it needs a file of questions, and one of answers"),
        (("--keep", "score > 0", "--out", "taken/a.jsonl"), "isn't a file of answers and stays as it is"),
    ],
)
def test_what_is_refused(questions, predict, capfd, words, message):
    Path("taken").mkdir()
    Path("taken/kept.jsonl").write_text('{"mine": true}\n')
    assert predict("--data.predict", "questions.jsonl", *words) == 2
    assert message in capfd.readouterr().err.splitlines()[-1]


def test_the_main_score_of_a_task():
    boxes = Prediction("a", "grounding", "", "[1]")
    chosen = ScoreChoice({"ocr": ["cer", "anls"]})
    assert KeepRule("score < 0.5").keeps(Prediction("a", "ocr", "cat", "cat"), chosen) is True
    assert KeepRule("score >= 1").keeps(Prediction("a", "vqa", "cat", "cat"), ScoreChoice()) is True
    assert KeepRule("score >= 1").keeps(Prediction("a", "vqa", "cat", None), ScoreChoice()) is None
    assert KeepRule("miou > 0.5").keeps(boxes, ScoreChoice()) is None
    assert KeepRule("acc@0.7 > 0.5 and score > 1").keeps(boxes, ScoreChoice()) is None


def test_a_row_is_read_as_the_conversation_that_it_was(photos, write_rows):
    root = Path("photos").absolute()
    outside = photos / "elsewhere.png"
    outside.write_bytes(Path("photos/0.png").read_bytes())
    calls = (ToolCall("zoom", {"box": [1, 2]}, "c1"),)
    messages = (
        Message("system", (Text("Be brief."),)),
        Message(
            "user",
            (Image(Path("0.png"), root=root), Text("What is <image>"), Box((0, 0, 9, 9), "b", 0, True)),
        ),
        Message("assistant", (Text("Hm."),), 0.5, "I think.", calls),
        Message("tool", (Text("done"),), call_id="c1", name="zoom"),
        Message(
            "assistant",
            (Text("It"), Text("is", entity=True), Point((0.5, 0.25)), Region((0.0, 0, 1, 0, 1, 1))),
        ),
        Message("user", (Image(data=outside.read_bytes()),)),
        Message("assistant", (Nothing(),)),
    )
    tools = ({"type": "function", "function": {"name": "zoom", "parameters": {}}},)
    whole = Conversation(messages, "vqa", 2.0, "own.jsonl:1", tools, ("a", "b"), "object", id=7)
    (back,) = Messages(write_rows([own_row(whole, root)]), image_root=str(root))
    assert back == whole
    clip = Video(frames=(Image(Path("0.png"), root=root),) * 2, fps=2.0, sampling=VideoSampling(num_frames=2))
    elsewhere = Conversation((Message("user", (clip, Image(outside, root=photos))),), source="own.jsonl:1")
    (back,) = Messages(write_rows([own_row(elsewhere, root)]), image_root=str(root))
    assert back.videos == elsewhere.videos
    assert back.images[0].data == outside.read_bytes()
    (read_back,) = read(write_rows([own_row(whole.with_messages(messages[:3]), root)]), image_root=str(root))
    assert read_back.messages == messages[:3]
