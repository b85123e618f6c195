"""Scores chosen for each task: which have a value, by task and by level, over any number of ranks."""

import json
from pathlib import Path

import pytest
import torch.distributed

from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.parts import Box, Point
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.known_scores import DEFAULT, SCORES
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.score_table import score_of, score_table
from lightning_vlm.metrics.scores import Scores

LEFT, RIGHT = Box((0, 0, 0.5, 1), "cat", 0), Box((0.5, 0, 1, 1), "cat", 0)


def boxes(found, right=(), faults=(), **more):
    return Prediction(
        "a", "grounding", "", "", found=Found(tuple(found), tuple(faults)), right=tuple(right), **more
    )


ANSWERS = [
    Prediction("a", "ocr", "hallo", "hello", level="object"),
    Prediction("b", "ocr", "hello world", "hello word", level="scene"),
    Prediction("c", "vqa", "red", "red", references=("red",) * 4 + ("blue",) * 6, level="object"),
    Prediction("d", "vqa", "The answer is (B).", "B"),
    Prediction("e", "vqa", "unknown", None),
    Prediction("f", "vqa", "Yes, there is.", "no"),
    Prediction("g", "vqa", "yes", "yes"),
    boxes([LEFT], [LEFT], level="relation"),
    boxes([RIGHT, RIGHT], [LEFT, RIGHT], faults=("a box of three numbers",)),
    boxes([], [LEFT]),
    boxes([LEFT]),
    boxes([]),
    boxes([Point((0.1, 0.1))], [Point((0.1, 0.1))]),
]


def scores_of(answers, choice=None):
    scores = Scores(ScoreChoice(choice))
    scores.add_answers(answers)
    return scores.report()


def test_the_default():
    found = scores_of(ANSWERS).scores
    names = {name.partition("/")[0] for name in found}
    assert names == set(DEFAULT)
    assert found["acc@0.5/grounding"] == pytest.approx((1 + 0.5 + 0) / 3), "points have no area"
    assert found["miou"] == found["miou/grounding"]
    assert found["parse_failures/grounding"] == 1 / 4
    assert "miou/ocr" not in found
    assert not scores_of(ANSWERS).without_value


def test_scores_of_boxes_by_hand():
    names = ["missed", "hallucination", "duplicates", "pointing", "map", "mask_miou", "mask_ciou", "acc@0.9"]
    found = scores_of(ANSWERS, {"grounding": names}).scores
    assert {name: found[f"{name}/grounding"] for name in names} == pytest.approx(
        {
            "missed": 1 / 4,
            "hallucination": 1 / 2,
            "duplicates": 1 / 5,
            "pointing": (1 + 0.5 + 0) / 3,
            # Of 4 boxes that were given 2 are right, of 4 right ones 2 are found: 51 of 101 recalls.
            "map": 2 / 4 * 51 / 101,
            "mask_miou": (1 + 0.5 + 0) / 3,
            "mask_ciou": (0.5 + 0.5 + 0) / (0.5 + 1 + 0.5),
            "acc@0.9": 0.5,
        }
    )


def test_chosen_by_task_and_by_list():
    found = scores_of(ANSWERS, {"ocr": ["anls", "cer"], "vqa": ["vqa_accuracy", "mcq"]}).scores
    assert found["anls/ocr"] == found["anls"] == pytest.approx((0.8 + 10 / 11) / 2)
    assert found["cer/ocr"] == pytest.approx(2 / 15)
    assert found["vqa_accuracy/vqa"] == 1
    assert "exact_match/ocr" not in found
    assert found["exact_match/grounding"] == 1, "a task that isn't named has the default"
    found = scores_of(ANSWERS, ["anls"]).scores
    assert {name.partition("/")[0] for name in found} == {"anls"}
    assert scores_of(ANSWERS, {"ocr": []}).scores.keys().isdisjoint({"exact_match/ocr", "anls/ocr"})


def test_by_level():
    found = scores_of(ANSWERS, {"ocr": ["exact_match"], "vqa": ["exact_match"]}).scores
    assert found["exact_match/level=object"] == 1 / 2
    assert found["exact_match/level=scene"] == 0
    assert found["miou/level=relation"] == 1
    names = [name for name in found if "level=" in name]
    assert "miou/level=object" not in names
    table = score_table("Test", {f"test/{name}": value for name, value in found.items()}, "test")
    rows = list(table.columns[0].cells)
    assert [str(row) for row in rows] == [
        "all", "grounding", "ocr", "vqa", "level=object", "level=relation", "level=scene",
    ]  # fmt: skip


def test_what_never_has_a_value_is_said():
    choice = {"ocr": ["anls", "vqa_accuracy"], "caption": ["bleu"]}
    assert scores_of(ANSWERS, choice).without_value == [
        "vqa_accuracy/ocr (it needs 4 right answers or more (`answers`))",
        "bleu/caption (no answer is of the task caption)",
    ]
    assert scores_of(ANSWERS[:2], ["anls", "miou"]).without_value == [
        "miou (it needs boxes or regions in the right answer)"
    ]
    assert scores_of([], ["anls"]).without_value == [], "nothing was answered at all"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ocr": ["ansl"]}, "there is no score ansl; did you mean anls"),
        (["acc@1.5"], "there is no score acc@1.5; did you mean acc@0.5"),
        (["cider"], "there is no score cider"),
        ("anls", "expected a list of scores"),
        ({"ocr": "anls"}, r"model.scores.ocr: found 'anls'; expected a list"),
        ({"ocr": [{"anls": 0.5}]}, "expected a list"),
    ],
)
def test_what_is_no_choice_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        ScoreChoice(given)


def test_columns_of_the_table():
    found = scores_of(ANSWERS, [*SCORES, "acc@0.9"]).scores
    metrics = {f"val/{name}": value for name, value in found.items()} | {"val/loss": 1.0, "lr": 1.0}
    assert {score_of(name, "val") is not None for name in metrics if name != "lr"} == {True}
    tables = score_table("", metrics, "val").renderables
    assert [len(table.columns) for table in tables] == [7, 7, 7, 7, 7, 3]
    heads = [str(column.header) for table in tables for column in table.columns[1:]]
    assert heads[:2] == ["exact match", "token F1"]
    assert heads[-1] == "loss"
    assert heads[heads.index("acc@0.8") + 1] == "acc@0.9"


def scores_on_ranks():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mine = ANSWERS[:7] if rank == 0 else ANSWERS[7:]
    report = scores_of(mine, [*SCORES, "acc@0.9"])
    torch.distributed.destroy_process_group()
    return json.dumps([report.scores, report.without_value])


def test_uneven_ranks_that_know_different_tasks(on_two_ranks):
    first, second = on_two_ranks(scores_on_ranks)
    assert first == second
    scores, without_value = json.loads(first)
    alone = scores_of(ANSWERS, [*SCORES, "acc@0.9"])
    assert scores == pytest.approx(alone.scores)
    assert without_value == alone.without_value == []
    assert {name for name in scores if "/" not in name} == {*SCORES, "acc@0.9"}


def test_the_documentation_has_every_score():
    text = (Path(__file__).parents[2] / "docs" / "scores.md").read_text()
    assert [name for name in SCORES if f"`{name}`" not in text] == []
