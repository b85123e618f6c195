import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import PIL.Image
import pytest

from lightning_vlm.data.conversation import Box, Image, Text
from lightning_vlm.data.drawn import TASKS, Drawn
from lightning_vlm.data.drawn import scenes as drawn_scenes
from lightning_vlm.data.drawn.scenes import DrawnThing, Thing, draw, layout
from lightning_vlm.data.drawn.talk import talk
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES
from lightning_vlm.errors import UserError


def pixels(conversation):
    return np.asarray(PIL.Image.open(io.BytesIO(conversation.images[0].data)).convert("RGB")).astype(int)


def text(message):
    return "".join(
        part.text if isinstance(part, Text) else str(part)
        for part in message.parts
        if not isinstance(part, Image)
    )


def ask_and_answer(conversation):
    turns = [message for message in conversation.messages if message.role != "system"]
    return zip(turns[::2], turns[1::2], strict=True)


@pytest.mark.parametrize("size", [64, 45, 128])
def test_boxes_are_exactly_around_the_pixels(monkeypatch, size):
    """Black on white: a pixel is a thing's when it is darker than half, and every such pixel is in a box."""

    def ground(rng, colours, size):
        return PIL.Image.new("RGB", (size, size), "white"), [(0, 0, 0)] * len(colours)

    monkeypatch.setattr(drawn_scenes, "background", ground)
    drawn_kinds = set()
    for seed in range(300):
        things = layout(Random(seed), "train", word_chance=0.3)
        picture, seen = draw(Random(seed), things, size, noise=0)
        dark = np.asarray(picture.convert("L")) < 128
        for drawn in seen:
            edges = np.array(drawn.box) * size
            x1, y1, x2, y2 = edges.round().astype(int)
            np.testing.assert_allclose(edges, [x1, y1, x2, y2], atol=1e-9)  # whole pixels
            inside = dark[y1:y2, x1:x2]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            dark[y1:y2, x1:x2] = False
            drawn_kinds.add(drawn.thing.shape)
        assert not dark.any()
    assert drawn_kinds == {*SHAPES, "word"}


@pytest.mark.parametrize("task", ["grounding", "referring"])
def test_the_box_is_around_the_thing_that_is_named(task):
    """In the finished picture, with noise: enough of the box has the colour that the words name."""
    checked = 0
    for conversation in [Drawn(size=150, tasks=[task])[index] for index in range(150)]:
        picture = pixels(conversation)
        for question, answer in ask_and_answer(conversation):
            (box,) = (
                part for message in (question, answer) for part in message.parts if isinstance(part, Box)
            )
            named = re.search(
                rf"\b({'|'.join(SHADES)}) ({'|'.join(SHAPES)})\b", text(question) + text(answer)
            )
            if task == "grounding":
                assert answer.parts == (box,)
            if named:
                x1, y1, x2, y2 = (round(64 * value) for value in box.xyxy)
                dark, light = (np.array(shade) for shade in SHADES[named[1]])
                inside = picture[y1:y2, x1:x2]
                of_that_colour = ((inside >= dark - 26) & (inside <= light + 26)).all(-1)
                assert of_that_colour.mean() > 0.2
                checked += 1
    assert checked > 80


def test_splits_never_show_the_same():
    layouts = {split: set() for split in ("train", "val", "test")}
    for split, found in layouts.items():
        for seed in range(2_000):
            found.add(frozenset((t.name, t.colour, t.x, t.y) for t in layout(Random(seed), split, 0.2)))
    # Not even the same things at the same places: 2,000 draws a split from the same random numbers.
    assert not layouts["train"] & layouts["val"]
    assert not layouts["train"] & layouts["test"]
    assert not layouts["val"] & layouts["test"]

    def pictures(split):
        source = Drawn(split, size=1_000)
        return {hashlib.sha256(source[index].images[0].data).hexdigest() for index in range(1_000)}

    train, val, test = map(pictures, layouts)
    assert len(train | val | test) == 3_000


def digest(source):
    return hashlib.sha256(repr([source[index] for index in range(60)]).encode()).hexdigest()


def test_an_item_is_the_same_in_every_process():
    here = digest(Drawn(size=60, seed=3))
    assert here == digest(Drawn(size=999, seed=3))
    assert here != digest(Drawn(size=60, seed=4))
    script = (
        "import hashlib; from lightning_vlm.data.drawn import Drawn; s = Drawn(size=60, seed=3);"
        "print(hashlib.sha256(repr([s[i] for i in range(60)]).encode()).hexdigest())"
    )
    run = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", script], env=run, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == here


def test_the_shipped_model_was_trained_on_what_is_drawn_now():
    """What is said about a picture also depends on where each thing lies on it."""
    said = [[text(message) for message in item.messages] for item in Drawn(size=60, seed=3)]
    assert hashlib.sha256(repr(said).encode()).hexdigest()[:16] == "b7a1359f6df4f932"


def test_asking_for_one_task_gives_the_items_that_have_it():
    every, some = Drawn(size=100), Drawn(size=100, tasks=["vqa"])
    same = [every[index] == some[index] for index in range(100) if every[index].task == "vqa"]
    assert len(same) > 10
    assert all(same)


def test_tasks_turns_and_forms():
    source = Drawn(size=3_000)
    items = [source[index] for index in range(3_000)]
    assert set(Counter(item.task for item in items)) == set(TASKS)
    assert min(Counter(item.task for item in items).values()) > 500
    rounds = Counter(sum(message.role == "user" for message in item.messages) for item in items)
    assert rounds[1] > 0.8 * len(items)
    assert rounds[2] > 100
    assert rounds[3] > 20
    assert 200 < sum(item.messages[0].role == "system" for item in items) < 400
    assert all(len(item.images) == 1 for item in items)
    captions = [item.messages[-1] for item in items if item.task == "caption"]
    assert all(any(isinstance(part, Text) and part.entity for part in caption.parts) for caption in captions)
    pictures = [PIL.Image.open(io.BytesIO(item.images[0].data)) for item in items[:20]]
    assert all(picture.size == (64, 64) for picture in pictures)
    assert PIL.Image.open(io.BytesIO(Drawn(image_size=96)[0].images[0].data)).size == (96, 96)


def test_answers_about_a_known_scene():
    def thing(shape, colour, word=""):
        return Thing(shape, colour, word, 0, 0, 9, 9, 0)

    seen = [
        DrawnThing(thing("circle", "red"), (0.0, 0.0, 0.2, 0.2)),
        DrawnThing(thing("star", "blue"), (0.5, 0.5, 1.0, 1.0)),
        DrawnThing(thing("star", "gray"), (0.4, 0.0, 0.6, 0.2)),
        DrawnThing(thing("word", "black", "Lamp"), (0.0, 0.7, 0.3, 0.9)),
    ]
    truth = {
        r"colou?r.* circle|circle .*colou?r": {"red"},
        r"colou?r.* word|word .*colou?r": {"black"},
        r"(Which|What|Name).* (shape|thing|figure|drawn) .*blue": {"star"},
        r"(How many|Count|number of).* shapes": {"3", "0", "1"},
        r"(How many|Count the|number of) shapes": {"3"},
        r"(How many|Count|number of).* stars": {"2"},
        r"(How many|Count|number of).* crosses": {"0"},
        r"^(Can|Do) you see a star( here)?\?": {"yes"},
        r"^Is there a star anywhere": {"yes"},
        r"^(Can you see|Do you see) a (red star|blue circle|heart)": {"no"},
        r"^Is it true that there is no (red circle|star)": {"no"},
        r"^Did nobody draw a (green thing|moon)": {"yes"},
        r"^(Where|In which part|Whereabouts).* circle": {"top left"},
        r"^(Where|In which part|Whereabouts).* gray star": {"top"},
        r"circle to the left of the blue star": {"yes"},
        r"blue star above the circle": {"no"},
        r"(larger|bigger).*blue star|blue star.*(larger|bigger)": {"blue star"},
    }
    hits = Counter()
    for seed in range(6_000):
        question, answer = talk("vqa", seen, Image(data=b"x"), Random(seed))[-2:]
        for pattern, answers in truth.items():
            if re.search(pattern, text(question)):
                assert text(answer) in answers, (text(question), text(answer))
                hits[pattern] += 1
    assert set(hits) == set(truth)


def test_no_answer_can_be_guessed_from_the_question():
    source = Drawn(size=4_000, tasks=["vqa"])
    answers = [text(answer) for index in range(len(source)) for _, answer in ask_and_answer(source[index])]
    counts = Counter(answers)
    assert 0.4 < counts["yes"] / (counts["yes"] + counts["no"]) < 0.6
    assert counts["yes"] + counts["no"] < 0.6 * len(answers)


def test_drawn_words_are_read_as_they_are_spelt():
    source = Drawn(size=300, tasks=["ocr"])
    words = [text(answer) for index in range(300) for _, answer in ask_and_answer(source[index])]
    assert {word.isupper() for word in words} == {word.islower() for word in words} == {True, False}
    assert len(set(words)) > 150
    assert all(2 <= len(word) <= 6 for word in words)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"split": "dev"}, "'dev'.*train, val, test"),
        ({"tasks": ["vqa", "dance"]}, "dance; choose among caption"),
        ({"tasks": []}, "empty"),
        ({"size": 0}, "size 0"),
        ({"image_size": 8}, "image_size 8"),
        ({"max_things": 5}, "max_things is 5; choose 1 to 4"),
        ({"rounds": 0}, "rounds is 0"),
        ({"questions": ["size", "colour"]}, "questions has size; choose among colour, shape"),
    ],
)
def test_wrong_arguments_are_refused(bad, named):
    with pytest.raises(UserError, match=named):
        Drawn(**bad)


def test_the_source_is_a_sequence():
    source = Drawn(size=5)
    assert len(list(source)) == 5
    assert source[-1] == source[4]
    with pytest.raises(IndexError):
        source[5]


def test_how_many_things_at_most():
    for most in (1, 2, 4):
        brief = [
            sum(part.entity for part in item.messages[-1].parts if isinstance(part, Text))
            for item in Drawn(size=60, tasks=["caption"], max_things=most)
        ]
        assert max(brief) == most


def test_rounds_and_the_kinds_of_questions():
    items = list(Drawn(size=200, tasks=["vqa", "caption"], rounds=5, questions=["colour", "absent"]))
    rounds = {task: Counter(len(list(ask_and_answer(i))) for i in items if i.task == task) for task in TASKS}
    assert max(rounds["vqa"]) == 5
    assert rounds["vqa"][5] > 50
    assert set(rounds["caption"]) == {1}
    kinds = Counter()
    for item in items:
        asked = [text(question) for question, _ in ask_and_answer(item)]
        assert len(set(asked)) == len(asked)
        for question, answer in ask_and_answer(item):
            if item.task == "vqa":
                kinds[text(answer) in ("yes", "no")] += 1
                negated = re.search(r"no |without|free of|nobody", text(question))
                assert negated or text(answer) in SHADES, text(question)
    assert min(kinds[True], kinds[False]) > 200


def test_a_picture_that_allows_no_kind_asked_for_is_asked_what_exists():
    for item in Drawn(size=30, tasks=["vqa"], max_things=1, questions=["larger"]):
        assert all(text(answer) in ("yes", "no") for _, answer in ask_and_answer(item))
