"""Scores of comparisons are those of validation, and verdicts are careful."""

import json
import random

import pytest

from lightning_vlm.callbacks.answer_rows import answer_row
from lightning_vlm.compare import bootstrap
from lightning_vlm.compare.answered import Answered, AnswerSet, with_keys
from lightning_vlm.compare.answers_file import answers_in
from lightning_vlm.compare.comparison import Comparison, Model, compare
from lightning_vlm.compare.entrants import Entrant
from lightning_vlm.compare.sentences import notes
from lightning_vlm.compare.sets import SampleSet
from lightning_vlm.compare.texts import texts_of
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Box
from lightning_vlm.metrics.known_scores import SCORES
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.metrics.scores import Scores

WORDS = ("a", "red", "cat", "dog", "on", "mat", "yes", "no", "7", "B")


def words(chance, count):
    return " ".join(chance.choice(WORDS) for _ in range(count))


def predictions(seed, count=40):
    """Answers in words, of yes or no, and of boxes; what is right depends on the place alone."""
    chance, right = random.Random(seed), random.Random("right")
    found = []
    for place in range(count):
        task = ("caption", "exists", "grounding")[place % 3]
        source = f"data.jsonl:{place + 1}"
        if task == "grounding":
            target = (Box((0.1, 0.1, 0.5, 0.5), right.choice(("cat", "dog")), image=0),)
            items = tuple(
                Box((0.1, 0.1, chance.uniform(0.2, 0.9), 0.5), chance.choice(("cat", "dog", "cow")), image=0)
                for _ in range(chance.randrange(3))
            )
            boxes = Found(items, ("three numbers",) if chance.random() < 0.2 else ())
            one = Prediction(
                source, task, "x", "y", found=boxes, right=target, views=(View((100, 80), (10, 8)),)
            )
        elif task == "exists":
            one = Prediction(source, task, chance.choice(("yes", "no", "maybe")), right.choice(("yes", "no")))
        else:
            several = tuple(words(right, right.randrange(1, 6)) for _ in range(10))
            one = Prediction(source, task, words(chance, chance.randrange(6)), several[0], references=several)
        found.append(one._replace(prompt="Is it?", images=(f"{place}.png",)))
    return found


def model(label, answers, against=0, kind="model"):
    return Model(Entrant(label, kind, label, against=against), None, [AnswerSet(with_keys(answers))])


def compared(choice, *models):
    (result,) = compare(models, [SampleSet("set", "here", None)], choice).sets
    return result


def plain(answers):
    return [Answered(answer) for answer in answers]


def test_each_score_is_the_one_of_validation(monkeypatch):
    monkeypatch.setattr(bootstrap, "FEWER_RESAMPLES", 60)
    choice = ScoreChoice(list(SCORES))
    answers = [predictions(seed) for seed in (1, 2)]
    result = compared(choice, model("a", plain(answers[0]), None), model("b", plain(answers[1])))
    seen = set()
    for number, of_model in enumerate(answers):
        scores = Scores(choice)
        scores.add_answers(of_model)
        expected = scores.report().scores
        for part in result.parts:
            for row in part.rows:
                estimate = row.estimates[number]
                name = f"{row.name}/{part.task}" if part.task else row.name
                if estimate is None:
                    assert expected.get(name) is None, name
                    continue
                assert estimate.value == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name
                assert estimate.interval.low - 1e-9 <= estimate.value <= estimate.interval.high + 1e-9, name
                seen.add(name)
    assert {"bleu", "map", "yes_no_f1", "vqa_accuracy", "miou/grounding", "cer/caption"} <= seen
    for row in result.parts[0].rows:
        difference = row.differences[1]
        if difference is not None:
            both = row.estimates[1].value - row.estimates[0].value
            assert difference.value == pytest.approx(both, abs=1e-12), row.name


def test_answers_of_a_file_have_their_scores_of_boxes(tmp_path, monkeypatch):
    """Though boxes are rounded there, and what is right isn't known. What needs all boxes has no value."""
    monkeypatch.setattr(bootstrap, "FEWER_RESAMPLES", 60)
    choice = ScoreChoice(list(SCORES))
    answers = predictions(1)
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(answer_row(one, choice)) + "\n" for one in answers))
    read = [
        # As where the data is given: several right answers stand there.
        found._replace(prediction=found.prediction._replace(references=one.references))
        for found, one in zip(
            answers_in(Entrant("file", "answers", str(file))).values(), answers, strict=True
        )
    ]
    models = [model("model", plain(answers), None), model("file", read, 0, "answers")]
    whole = compared(choice, *models)
    note = "set: map, mask_ciou, duplicates can't be made of files of answers; compare the models"
    assert note in notes(Comparison(models, [whole]))
    without = set()
    for row in whole.parts[0].rows:
        if row.estimates[1] is None:
            without.add(row.name)
            continue
        assert row.estimates[0] == row.estimates[1], row.name
        assert row.differences[1].verdict == "same"
    assert without == {"map", "mask_ciou", "duplicates"}


def of_values(values, pictures=None):
    answers = []
    for place, value in enumerate(values):
        picture = f"{place}.png" if pictures is None else pictures[place]
        text = "right" if value else "wrong"
        one = Prediction(f"d:{place}", "vqa", text, "right", prompt="?", images=(picture,))
        answers.append(Answered(one))
    return answers


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0] * 20 + [1] * 20, [1] * 40, "better"),
        ([1] * 40, [0] * 20 + [1] * 20, "worse"),
        ([0, 1] * 20, [1, 0] * 20, "unclear"),
        ([0, 1] * 20, [0, 1] * 20, "same"),
        ([1] * 40, [1] * 35 + [0] * 5, "too few"),  # a fair coin could have done that
        ([0] * 19, [1] * 19, "too few"),
    ],
)
def test_verdicts(before, after, verdict):
    result = compared(ScoreChoice(), model("a", of_values(before), None), model("b", of_values(after)))
    assert result.parts[0].rows[0].differences[1].verdict == verdict
    won = sum(two > one for one, two in zip(before, after, strict=True))
    lost = sum(two < one for one, two in zip(before, after, strict=True))
    assert (len(result.changes[1].won), len(result.changes[1].lost)) == (won, lost)


def test_samples_of_a_picture_are_one_group():
    """Ten questions about each of three pictures don't say more than three pictures do."""
    pictures = [f"{place // 10}.png" for place in range(30)]
    sides = [0] * 10 + [1] * 20
    apart = compared(ScoreChoice(), model("a", of_values(sides), None))
    together = compared(ScoreChoice(), model("a", of_values(sides, pictures), None))
    assert (apart.groups, together.groups) == (30, 3)
    narrow, wide = (one.parts[0].rows[0].estimates[0].interval for one in (apart, together))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_less_is_better_of_some_scores():
    choice = ScoreChoice(["cer"])
    before, after = of_values([0] * 30), of_values([1] * 30)
    result = compared(choice, model("a", before, None), model("b", after))
    (row,) = result.parts[0].rows
    assert row.differences[1].value < 0
    assert row.differences[1].verdict == "better"
    assert len(result.changes[1].won) == 30


def test_the_score_that_decides():
    """Boxes where there are some, or the first one that was chosen."""
    answers = plain(predictions(1))
    default = compared(ScoreChoice(), model("a", answers, None), model("b", plain(predictions(2))))
    assert set(default.main) == {"exact_match", "acc@0.5"}
    by_task = {change.key.source: change.measure for change in default.changes[1].won}
    assert set(by_task.values()) == {"exact_match", "acc@0.5"}
    chosen = ScoreChoice({"caption": ["rougeL", "anls"], "grounding": ["miou"], "exists": ["yes_no"]})
    result = compared(chosen, model("a", answers, None), model("b", plain(predictions(2))))
    assert set(result.main) == {"rougeL", "miou", "yes_no"}


def test_length_bias_is_within_tasks():
    """Long answers of one task are wrong, short ones of the other right; within each, length says nothing."""
    chance = random.Random(0)
    rows = [("long", 100 + chance.randrange(10), chance.random() < 0.3) for _ in range(300)]
    rows += [("short", 10 + chance.randrange(10), chance.random() < 0.8) for _ in range(300)]
    texts, scores, tasks = (
        ["x" * size for _, size, _ in rows],
        [float(right) for *_, right in rows],
        [r[0] for r in rows],
    )
    assert abs(texts_of(texts, (), scores, tasks).bias) < 0.1
    assert texts_of(texts, (), scores, ["one"] * 600).bias < -0.3
