"""PredictionTable: the same samples each time, what was really answered, on one page that needs no other."""

import io
import json
from functools import partial
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader

from lightning_vlm import PredictionTable, VLMDataModule
from lightning_vlm.callbacks.prediction_table.drawing import FOUND, RIGHT, WIDTH, drawn_into
from lightning_vlm.callbacks.prediction_table.history import LONGEST, Answer, History, Validation, answer_of
from lightning_vlm.callbacks.prediction_table.loggers import wandb_table
from lightning_vlm.callbacks.prediction_table.marks import Mark, marks_in
from lightning_vlm.callbacks.prediction_table.page import page
from lightning_vlm.callbacks.prediction_table.samples import Place, Row, row_of, spread
from lightning_vlm.data.conversation import Conversation, Image, Message, Text, Video
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.loaders import make_loader
from lightning_vlm.data.parts import Box, Point
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.metrics.prediction import Prediction
from tests.support.ranks import DDP
from tests.support.videos import number_on, numbered_pictures

TASKS = ["vqa", "ocr", "grounding"]


class Heard(Callback):
    """All answers of each validation, by the source of their samples."""

    def __init__(self):
        self.validations = []

    def on_validation_end(self, trainer, pl_module):
        answers = {answer.source: answer.text for answer in pl_module.predictions}
        self.validations.append((trainer.global_step, answers))


@pytest.fixture(scope="module")
def fit(module, make_quiet):
    """Two epochs of three steps; all answers of its validations."""

    def run(table, folder, data=None, generation=True, **options):
        made = module(
            adapt={"projector": "full"},
            optimizer=partial(torch.optim.AdamW, lr=3e-2),
            generation={"max_new_tokens": 3} if generation else None,
        )
        if data is None:
            val = Drawn("val", size=12, tasks=TASKS)
            data = VLMDataModule(train=Drawn("train", size=12), val=val, batch_size=4)
        heard = Heard()
        given = {"max_epochs": 2, "num_sanity_val_steps": 1, **options}
        make_quiet(callbacks=[table, heard], default_root_dir=folder, **given).fit(made, data)
        return [(step, answers) for step, answers in heard.validations if step]

    return run


def kept(table):
    """For each validation its step, and the texts by place."""
    return [
        (step, {tuple(place): answer.text for place, answer in answers.items()})
        for step, answers in table._history.validations
    ]


# Which samples, and what was answered


def test_the_same_samples_each_time_with_what_was_answered(fit, tmp_path):
    table = PredictionTable(samples=5)
    heard = fit(table, tmp_path)
    val = Drawn("val", size=12, tasks=TASKS)
    (first, second) = kept(table)
    assert first[1].keys() == second[1].keys()
    assert [step for step, _ in kept(table)] == [3, 6]  # not that of the sanity check
    tasks = [val[index].task for _, index in first[1]]
    assert sorted(tasks.count(task) for task in TASKS) == [1, 2, 2]
    for (step, texts), (step_heard, answers) in zip(kept(table), heard, strict=True):
        assert step == step_heard
        for (loader, index), text in texts.items():
            assert loader == 0
            assert text == answers[val[index].source]
    assert table.page == tmp_path / "predictions.html"


def test_two_ranks_show_what_one_shows(fit, on_two_ranks, tmp_path):
    """The samples of both, on both."""
    whole = PredictionTable(samples=5)
    fit(whole, tmp_path / "one", max_epochs=1)

    def on_rank():
        table = PredictionTable(samples=5)
        val = Drawn("val", size=12, tasks=TASKS)
        data = VLMDataModule(train=Drawn("train", size=12), val=val, batch_size=2)
        fit(table, tmp_path / "two", data, max_epochs=1, **DDP)
        return [str(place) for _, texts in kept(table) for place in texts], str(table.page)

    first, second = on_two_ranks(on_rank)
    assert first[0] == second[0] == [str(place) for _, texts in kept(whole) for place in texts]
    assert first[1] == str(tmp_path / "two/predictions.html")
    assert second[1] == "None"
    assert len(images_of((tmp_path / "two/predictions.html").read_text())) == 5


def test_samples_that_are_not_seen_are_not_chosen(fit, tmp_path):
    table = PredictionTable(samples=9)
    fit(table, tmp_path, limit_val_batches=1, max_epochs=1)
    ((_, texts),) = kept(table)
    assert sorted(texts) == [(0, index) for index in range(4)]


class SeveralLoaders(VLMDataModule):
    def val_dataloader(self):
        ours = super().val_dataloader()
        test = make_loader(self, "test", learn=True, prompts=True)
        foreign = DataLoader([next(iter(test))], batch_size=None)
        return [ours, foreign, test]


def test_several_loaders(fit, tmp_path):
    """One isn't ours: it is said, and its samples aren't taken for others."""
    table = PredictionTable(samples=4)
    test = Drawn("test", size=3, tasks=["vqa"])
    data = SeveralLoaders(
        train=Drawn("train", size=4), val=Drawn("val", size=6, tasks=["vqa"]), test=test, batch_size=4
    )
    with pytest.warns(UserWarning, match="samples of validation loader 1 aren't shown"):
        ((_, answers),) = fit(table, tmp_path, data, max_epochs=1)
    ((_, texts),) = kept(table)
    assert sorted(texts) == [(0, 0), (0, 3), (2, 0), (2, 1)]
    assert texts[2, 1] == answers[test[1].source]
    assert "drawn:0/test/1" in table.page.read_text()


@pytest.mark.filterwarnings("error:PredictionTable")
def test_every_second_validation_and_a_sample_that_is_skipped(fit, listed, tmp_path, caplog):
    good = [Drawn("val", size=6)[index] for index in range(3)]
    turns = Message("user", (Text("long " * 500),)), Message("assistant", (Text("Yes."),))
    long = Conversation(turns, source="long:1")
    data = VLMDataModule(
        train=Drawn("train", size=4), val=listed([long, *good]), batch_size=2, max_length=200
    )
    table = PredictionTable(every=2, dirpath=str(tmp_path / "else/where"))
    heard = fit(table, tmp_path, data, max_epochs=3)
    assert [step for step, _ in kept(table)] == [2, 6]
    for (_, texts), (_, answers) in zip(kept(table), heard[::2], strict=True):
        assert texts == {(0, at + 1): answers[sample.source] for at, sample in enumerate(good)}
    assert "1 of its samples were skipped" in caplog.text
    assert table.page == tmp_path / "else/where/predictions.html"


def test_nothing_is_written_without_answers(fit, tmp_path):
    table = PredictionTable()
    with pytest.warns(UserWarning, match="model.generation is null"):
        fit(table, tmp_path, generation=False, max_epochs=1)
    fit(table, tmp_path, fast_dev_run=True)
    assert table.page is None
    assert not list(tmp_path.rglob("predictions*"))


def test_no_validation_is_said(fit, tmp_path):
    with pytest.warns(UserWarning, match="there was no validation"):
        fit(PredictionTable(), tmp_path, limit_val_batches=0, max_epochs=1)


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(0, 60))
def test_choices_are_even(sizes, count):
    chosen = spread(sizes, count)
    assert sum(map(len, chosen)) == min(count, sum(sizes))
    for places, size in zip(chosen, sizes, strict=True):
        assert len(set(places)) == len(places)
        assert all(0 <= place < size for place in places)
        is_full = len(places) == size
        assert is_full or len(places) >= max(map(len, chosen)) - 1


@given(st.lists(st.integers(1, 1000), max_size=60, unique=True), st.integers(2, 9))
def test_a_history_is_bounded_and_even(steps, keep):
    history, again = History(keep), History(keep)
    steps = sorted(steps)
    for step in steps:
        history.add(step, {})
        again.add(step, {})
        again.load(json.loads(json.dumps(again.state())))  # as from a checkpoint
    found = [validation.step for validation in history.validations]
    assert found == [validation.step for validation in again.validations]
    assert len(found) == min(len(steps), keep)
    assert not steps or (found[0], found[-1]) == (steps[0], steps[-1])


# What is shown


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def parsed(text):
    tags = Tags()
    tags.feed(text)
    return tags


def images_of(text):
    return [attrs["href"] for tag, attrs in parsed(text).tags if tag == "image"]


def row(picture=None, right=(), asked=(), task="vqa", source="a.jsonl:1", index=0):
    pictures = () if picture is None else (picture,)
    return Row(Place(0, index), task, source, pictures, 0, list(right), list(asked))


def answer(text="red", found=(), **fields):
    return Answer(**{
        "text": text, "right": True, "scores": {"token_f1": 0.5}, "found": list(found), "faults": [],
        "prompt": "What?", "target": "red", **fields,
    })  # fmt: skip


def test_the_page_needs_nothing_and_runs_nothing():
    """Whatever the data and the model say, and each picture once."""
    evil = "<script>alert(1)</script>\x1b[2J<img src=x onerror=y>"
    picture = PIL.Image.new("RGB", (300, 200), "blue")
    marks = [Mark("box", (0.0, 0.0, 0.5, 0.5), evil[:60])]
    rows = [row(picture, marks, marks, task=evil, source=evil)]
    evils = {Place(0, 0): answer(evil, marks, prompt=evil, target=evil, faults=[evil], scores={evil: 1.0})}
    text = page(rows, [Validation(step, evils) for step in (100, 200)])
    found = parsed(text)
    assert not [tag for tag, _ in found.tags if tag in ("script", "img", "link", "iframe")]
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    addresses = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("href", "src")]
    assert all(value.startswith(("data:image/", "#")) for value in addresses)
    assert "\x1b" not in text
    assert "<script>alert(1)</script>⟨U+001B⟩" in found.text
    assert len(images_of(text)) == 1
    assert "step 100" in found.text
    assert "step 200" in found.text


def test_the_page_is_bounded():
    data = torch.randint(256, (900, 1200, 3), dtype=torch.uint8).numpy()  # noise, which compresses badly
    file = io.BytesIO()
    PIL.Image.fromarray(data).save(file, "JPEG")
    ask = Message("user", (*[Image(data=file.getvalue())] * 5, Text("What?")))
    shown = row_of(Place(0, 0), Conversation((ask, Message("assistant", (Text("red"),)))))
    assert [picture.size for picture in shown.pictures] == [(384, 288)] * 3
    assert shown.more == 2
    long = answer_of(Prediction("a", "vqa", "x" * 10**6, "y" * 10**6, prompt="z" * 10**6))
    assert len(long.text) == len(long.prompt) == len(long.target) == LONGEST
    assert len(page([shown], [Validation(step, {shown.place: long}) for step in range(8)])) < 400_000


def test_a_video_is_a_strip_of_its_frames():
    video = Video(frames=numbered_pictures(9), fps=3, sampling=VideoSampling(fps=1))
    turns = (Message("user", (video, Text("What happens?"))), Message("assistant", (Text("It counts."),)))
    row = row_of(Place(0, 0), Conversation(turns, source="videos.jsonl:1"))
    (strip,) = row.pictures
    assert row.more == 0
    assert strip.size == (4 * 80, 48)
    frames = [strip.crop((80 * at, 0, 80 * at + 80, 48)) for at in range(4)]
    assert [number_on(np.asarray(frame).transpose(2, 0, 1)) for frame in frames] == [0, 2, 4, 6]


def test_marks_lie_where_they_are_said_to():
    """Pixels and fractions, each in its own picture; what is asked apart from what is right."""
    picture = Image(data=b"")
    turns = (
        Message("user", (picture, Box((10, 20, 30, 40), "cat", pixels=True), Text("?"))),
        Message("assistant", (Text("No."),)),
        Message("user", (picture, Point((0.5, 0.5), image=0), Text("?"))),
        Message("assistant", (Box((0.0, 0.0, 0.5, 1.0)),)),
    )
    right, asked = marks_in(Conversation(turns), [(100, 50), (200, 200)])
    assert right == [Mark("box", (0.0, 0.0, 0.5, 1.0), "", 1)]
    assert asked == [Mark("box", (0.1, 0.4, 0.3, 0.8), "cat", 0), Mark("point", (0.5, 0.5), "", 0)]


def test_drawn_boxes_have_their_colours():
    shown = row(PIL.Image.new("RGB", (WIDTH, 100), "white"), [Mark("box", (0.1, 0.1, 0.5, 0.9))])
    drawn = drawn_into(shown.pictures[0], shown, answer(found=[Mark("box", (0.6, 0.1, 0.9, 0.9))]), 0)
    assert drawn.getpixel((round(0.1 * WIDTH), 50)) == RIGHT
    assert drawn.getpixel((round(0.9 * WIDTH), 50)) == FOUND
    assert drawn.getpixel((round(0.55 * WIDTH), 50)) == (255, 255, 255)


def test_weights_and_biases_gets_boxes_that_can_be_switched_off(fit, tmp_path):
    import wandb

    right, found = Mark("box", (0.1, 0.2, 0.3, 0.4), "cat"), Mark("box", (0.5, 0.5, 1.5, 1.0), "dog")
    shown = [(row(PIL.Image.new("RGB", (40, 30)), [right]), answer(found=[found])), (row(index=1), answer())]
    columns, data = wandb_table(shown)
    table = wandb.Table(columns=columns, data=data)
    overlays = {name: box._val for name, box in data[0][columns.index("picture")]._boxes.items()}
    assert overlays["right"][0]["position"] == {"minX": 0.1, "minY": 0.2, "maxX": 0.3, "maxY": 0.4}
    assert overlays["predicted"][0]["position"]["maxX"] == 1.0
    assert overlays["predicted"][0]["class_id"] == 2
    assert table.get_column("prediction") == ["red", "red"]
    assert table.get_column("token_f1") == [0.5, 0.5]
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    fit(PredictionTable(samples=2), tmp_path, logger=[logger, CSVLogger(tmp_path)], max_epochs=1)
    (file,) = Path(logger.experiment.dir).rglob("predictions*.json")
    assert len(json.loads(file.read_text())["data"]) == 2


@pytest.mark.skipif(not find_spec("tensorboard"), reason="TensorBoard isn't installed")
def test_tensorboard_gets_a_picture_of_each_sample(fit, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(PredictionTable(samples=3), tmp_path, logger=TensorBoardLogger(tmp_path, name=None))
    events = EventAccumulator(str(tmp_path / "version_0"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 3
    assert [event.step for event in events.Images(tags[0])] == [3, 6]
