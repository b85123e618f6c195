"""Negatives ask for nothing that is there, say so, and are the same wherever they are made."""

import io
import json
from itertools import islice

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import (
    Box,
    Chain,
    Conversation,
    Conversations,
    Image,
    Message,
    Nothing,
    Slice,
    Text,
)
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.drawn.scenes import draw, layout
from lightning_vlm.data.drawn.vocabulary import SHADES
from lightning_vlm.data.drawn.vocabulary import SHAPES as DRAWN_SHAPES
from lightning_vlm.data.negatives import Negatives, WithNegatives
from lightning_vlm.data.negatives.names import Names, may_be_there
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError


def text_of(message):
    return "".join(part.text for part in message.parts if isinstance(part, Text))


class Listed(Conversations):
    """Samples in a list."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def picture(colour="teal", size=(60, 40)):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, "PNG")
    return Image(data=file.getvalue())


def find(image, label, box=(0.1, 0.2, 0.3, 0.4), task="grounding", question="Where is the {}?"):
    asked = Message("user", (image, Text(question.format(label))))
    return Conversation((asked, Message("assistant", (Box(box, label=label),))), task=task)


class TestNames:
    NAMES = Names(
        [f"{colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square")]
    )

    def test_the_hard_one_shares_most_with_what_is_there(self):
        import random

        shown = ["red square", "blue circle"]
        found = {self.NAMES.hard("blue circle", shown, random.Random(seed)) for seed in range(20)}
        assert found == {"blue square", "red circle"}

    def test_without_words_in_common_it_is_what_is_seen_beside_it(self):
        samples = [find(picture(colour), "mouse") for colour in ("red", "green", "blue", "white")]
        samples += [find(picture(colour), "keyboard") for colour in ("red", "green")]
        samples += [find(picture("blue"), "zebra"), find(picture("black"), "lion")]
        data = WithNegatives(Listed(*samples), ratio={"grounding": 1}, hard=1.0)
        negative = data[len(samples) + 3]  # of the mouse alone on white
        assert text_of(negative.messages[0]) == "Where is the keyboard?"

    @pytest.mark.parametrize(
        ("name", "shown", "expected"),
        [
            ("circle", "red circle", True),
            ("red circle", "circle", True),
            ("Red Circles", "a red circle", True),
            ("thing", "red circle", True),
            ("red circle", "all things", False),
            ("red thing", 'red word "lamp"', True),
            ("red square", "red circle", False),
            ("box", "boxes", True),
            ("bus", "buses", True),
        ],
    )
    def test_what_may_be_there(self, name, shown, expected):
        assert may_be_there(name, [shown]) is expected


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    index=st.integers(0, 19),
    time=st.integers(0, 40),
    hard=st.sampled_from([0.0, 1.0]),
    task=st.sampled_from(["grounding", "detection"]),
)
def test_nothing_that_is_drawn_is_ever_asked_for(seed, index, time, hard, task):
    drawn = Drawn(size=20, seed=seed, tasks=[task])
    data = WithNegatives(drawn, ratio={task: 1}, hard=hard)
    negative = data[20 + index + len(data) * time]
    assert negative.messages[-1].parts == (Nothing(),)
    assert negative.images == drawn[index].images
    question = text_of(negative.messages[-2]).lower()
    for box in drawn[index].shown:
        colour, shape, *_ = box.label.split()
        asked_colour = [
            name for name in COLOURS if name in question.split() or f"{name}." in question.split()
        ]
        of_colour = not asked_colour or colour in asked_colour
        asked_shape = [name for name in SHAPES if name in question]
        of_shape = not asked_shape or shape in asked_shape
        assert not (of_colour and of_shape and "word" not in question), (question, box.label)


COLOURS = list(SHADES)
SHAPES = list(DRAWN_SHAPES)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 9))
def test_an_empty_place_touches_nothing(seed, index):
    drawn = Drawn(size=10, seed=seed, tasks=["referring"])
    negative = WithNegatives(drawn, nothing="Nothing is there.")[10 + index]
    if negative.messages[-1].parts != (Text("Nothing is there."),):
        assert negative == drawn[index]  # the picture is too full
        return
    (asked,) = [part for part in negative.messages[-2].parts if isinstance(part, Box)]
    x1, y1, x2, y2 = asked.xyxy
    assert 0 <= x1 < x2 <= 1
    assert 0 <= y1 < y2 <= 1
    for other in drawn[index].shown:
        assert x2 < other.xyxy[0] or other.xyxy[2] < x1 or y2 < other.xyxy[1] or other.xyxy[3] < y1


def test_most_pictures_have_an_empty_place():
    data = WithNegatives(Drawn(size=100, tasks=["referring"]))
    found = sum(sample.messages[-1].parts == (Text("Nothing."),) for sample in islice(data, 100, 200))
    assert found > 85


def test_what_is_drawn_is_what_is_said_to_be_shown():
    from random import Random

    drawn = Drawn(size=30, tasks=["detection"])
    for index, sample in enumerate(drawn):
        rng = Random(f"0/train/{index}/detection")
        _, seen = draw(rng, layout(rng, "train", 0.2, 4), 64)
        assert [box.xyxy for box in sample.shown] == [thing.box for thing in seen]


def test_boxes_of_other_samples_with_the_picture_count():
    shared = picture("red")
    samples = [find(shared, "dog"), find(shared, "cat"), find(picture("blue"), "cow")]
    data = WithNegatives(Listed(*samples), ratio={"grounding": 4}, hard=0.0)
    asked = [text_of(sample.messages[0]) for sample in islice(data, 3, None)]
    assert asked == ["Where is the cow?"] * 8 + asked[8:]
    assert set(asked[8:]) == {"Where is the dog?", "Where is the cat?"}


def test_rows_of_a_file(tmp_path):
    for name in ("a", "b"):
        PIL.Image.new("RGB", (50, 50), "teal").save(tmp_path / f"{name}.png")
    rows = []
    for name, label in (("a", "dog"), ("a", "cat"), ("b", "horse")):
        box = {"type": "box", "box": [0.1, 0.2, 0.3, 0.4], "label": label}
        asked = [{"type": "image", "path": f"{name}.png"}, {"type": "text", "text": f"Find the {label}."}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": [box]}]
        rows.append(json.dumps({"messages": messages, "task": "grounding"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = WithNegatives(read(str(tmp_path / "rows.jsonl")))
    assert [text_of(sample.messages[0]) for sample in islice(data, 3, 5)] == ["Find the horse."] * 2


def test_ratios_and_times():
    drawn = Drawn(size=200, tasks=["grounding", "detection", "caption"])
    counts = dict.fromkeys(("grounding", "detection", "caption"), 0)
    for index in range(200):
        counts[drawn[index].task] += 1
    data = WithNegatives(drawn)
    assert len(data) == 200 + counts["grounding"] + 3 * counts["detection"]
    names, of = data.task_table()
    assert [names[task] for task in of[200:]] == [sample.task for sample in islice(data, 200, None)]
    half = WithNegatives(drawn, ratio={"caption": 0, "grounding": 0.5})
    assert 0.3 * counts["grounding"] < len(half) - 200 < 0.7 * counts["grounding"]


def test_the_schedule_changes_how_many_and_which():
    points = [{"epoch": 0, "ratio": 0.0, "hard": 0.0}, {"epoch": 2, "ratio": 2.0, "hard": 1.0}]
    data = WithNegatives(Drawn(size=50, tasks=["grounding"]), schedule=points)
    assert len(data) == 150

    def share(time):
        samples = [data[index + time * len(data)] for index in range(50, 150)]
        return sum(sample.messages[-1].parts == (Nothing(),) for sample in samples) / 100

    assert (share(0), share(16), share(32)) == (0, 0.5, 1)


def test_another_time_another_question_and_the_same_one_again():
    drawn = Drawn(size=40, tasks=["grounding"])
    data, again = WithNegatives(drawn), WithNegatives(drawn)
    first = [data[index] for index in range(40, 80)]
    later = [data[index + 80] for index in range(40, 80)]
    assert first == [again[index] for index in range(40, 80)]
    assert sum(one == other for one, other in zip(first, later, strict=True)) < 20


@pytest.mark.parametrize("sampling", [None, "uniform"])
def test_batches_depend_on_the_epoch_and_not_on_ranks_or_resuming(sampling, processor_of):
    data = VLMDataModule(
        train=Drawn(size=30, tasks=["grounding"]),
        negatives=True,
        sampling=sampling,
        batch_size=4,
        processor=processor_of("llava"),
    )
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    sampler = loader.sampler
    batches = list(sampler)
    sampler.skip = 3
    assert list(sampler) == batches[3:]
    sampler.skip = 0
    seen = [index % 60 for batch in batches for index in batch if index >= 0]
    assert all(index // 60 // 16 == 1 for batch in batches for index in batch if index >= 0)
    assert sampling or sorted(seen) == list(range(60))
    two = [data.batching.sampler(60, 2, True, 0, rank, 2, times=16) for rank in (0, 1)]
    one = data.batching.sampler(60, 4, True, 0, times=16)
    assert [a + b for a, b in zip(*two, strict=True)] == list(one)
    batch = next(iter(loader))
    assert set(batch.tasks) == {"grounding"}


def test_sources_in_sources_know_their_names():
    drawn = Drawn(size=10)
    assert Chain([drawn, Slice(drawn, stop=3)]).names() == 2 * drawn.names()
    assert Chain([drawn, Listed(find(picture(), "dog"))]).names() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": {"groundin": 1}}, "the data has no task groundin; did you mean grounding"),
        ({"ratio": {"grounding": -1}}, "ratio.grounding: found -1"),
        ({"hard": 2.0}, "hard: found 2.0"),
        ({"schedule": [{"hard": 1.0}]}, r"schedule\[0\]: found no epoch"),
        ({"schedule": [{"epoch": 0, "hrad": 1.0}]}, "no key hrad; did you mean hard"),
        ({"question": "Find it."}, "negatives.question"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        WithNegatives(Drawn(size=5, tasks=["grounding"]), **options)


def test_data_without_such_tasks_is_refused():
    with pytest.raises(UserError, match="the data has the tasks caption; expected one of detection"):
        WithNegatives(Drawn(size=5, tasks=["caption"]))
    with pytest.raises(UserError, match="negatives: there is no key hadr"):
        Negatives.read({"hadr": 1.0})
