import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import DataError, UserError
from tests.support.ranks import DDP, call_on_ranks


@pytest.fixture
def lines(write):
    """Six samples; `bad` have a picture that is none, `long` an answer of many words."""

    def make(bad=(), long=()):
        Path("bad.png").write_bytes(b"no picture")
        ask = "What is it?"
        records = [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "path": "bad.png" if n in bad else "cat.png"},
                            {"type": "text", "text": ask},
                        ],
                    },
                    {"role": "assistant", "content": "word " * 400 if n in long else f"cat {n}"},
                ]
            }
            for n in range(6)
        ]
        return write(*records)

    return make


class Reads(LightningModule):
    """Sees batches."""

    def __init__(self, processor):
        super().__init__()
        self.processor, self.seen = processor, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        self.seen += [source.split(":")[-1] for source in batch.sources]
        return self.weight * batch.tokens

    def test_step(self, batch):
        self.seen += batch.sources

    predict_step = validation_step = test_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": "runs",
    }
    return Trainer(**{**quiet, **options})


@pytest.fixture
def processor(processor_of):
    return processor_of("shipped")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_stops_the_run_with_one_line(lines, processor, workers):
    data = VLMDataModule(train=lines(bad=[3]), batch_size=2, shuffle=False, num_workers=workers)
    with pytest.raises(DataError) as error:
        trainer().fit(Reads(processor), data)
    assert type(error.value) is DataError
    assert "data.jsonl:4" in str(error.value)
    assert "not a picture" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_skipped_counted_and_reported(lines, processor, workers):
    data = VLMDataModule(
        train=lines(bad=[1, 3], long=[4]),
        batch_size=2,
        shuffle=False,
        num_workers=workers,
        on_bad_sample="skip",
        max_length=200,
    )
    reads = Reads(processor)
    trainer().fit(reads, data)
    assert reads.seen == ["1", "3", "6"]
    (path,) = Path("runs").rglob("skipped_fit_0.jsonl")
    report = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["source"].split(":")[-1] for row in report] == ["2", "4", "5"]
    assert "max_length" in report[2]["expected"]


def test_samples_too_long_are_skipped_even_if_bad_samples_stop_the_run(lines, processor):
    data = VLMDataModule(train=lines(long=[0]), batch_size=2, max_length=200)
    reads = Reads(processor)
    trainer().fit(reads, data)
    assert sorted(reads.seen) == ["2", "3", "4", "5", "6"]
    assert len(data.report.skipped) == 1


def test_what_is_done_to_turns_is_said_in_one_line_and_counted(write, processor, caplog):
    """A trailing question is no lost round; a validation prompt asks for the last answer, as without it."""
    user, assistant = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
    alone = [user, assistant]
    path = write(*({"messages": turns} for turns in (alone, [*alone, user], [user, *alone, user])))
    data = VLMDataModule(train=path, batch_size=2, shuffle=False)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(max_epochs=2).fit(Reads(processor), data)
    said = [record.getMessage() for record in caplog.records if "turn" in record.getMessage()]
    dropped = "turns come after the last answer; they are dropped, because nothing is learned after it."
    apart = "several turns of one role come in a row; they are kept apart, as the chat template writes them."
    assert said == [
        f"{path}:2: {dropped} Others like it are counted.",
        f"{path}:3: {apart} Others like it are counted.",
        f"In 2 samples {dropped}",
        f"In 1 sample {apart}",
    ]
    assert data.report.truncated == set()
    prompts = data.rendered("train", learn=True, prompts=True)[[0, 1]]
    assert prompts.references == ["A.", "A."]
    assert torch.equal(*prompts.prompts["input_ids"])


def test_splits(lines, processor, tmp_path):
    path = lines()
    data = VLMDataModule(train=path, test=Drawn("test", size=5), processor=processor)
    assert len(data.source("train")) == 6
    assert len(VLMDataModule(train=tmp_path / path, processor=processor).source("train")) == 6
    assert isinstance(data.source("test"), Conversations)
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match=r"data\.predict is not set"):
        data.source("predict")
    with pytest.raises(UserError, match="no split 'valid'; choose one of train, val, test, predict"):
        data.source("valid")
    with pytest.raises(UserError, match=r"data\.val is not set"):
        data.setup("validate")
    with pytest.raises(UserError, match="has no processor"):
        assert VLMDataModule(train=path).renderer
    with pytest.raises(UserError, match=r"data\.batch_size: found 0; expected a whole number, at least 1"):
        VLMDataModule(batch_size=0)


def test_it_renders_for_the_module_that_it_runs_with(lines, processor, processor_of):
    data = VLMDataModule(train=lines(), predict=Drawn("test", size=3), batch_size=2)
    trainer().fit(Reads(processor), data)
    assert data.renderer.processor is processor
    other = processor_of("qwen2_5_vl")
    reads = Reads(other)
    trainer().predict(reads, data)
    assert data.renderer.processor is other
    assert len(reads.seen) == 3


def test_overfit_batches_is_refused(lines, processor):
    data = VLMDataModule(train=lines())
    with pytest.raises(UserError, match=r"trainer\.overfit_batches 1"):
        trainer(overfit_batches=1).fit(Reads(processor), data)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("limit", [1.0, 0.5, 2, 100])
def test_batches_per_epoch_are_those_that_the_trainer_takes(lines, processor, accumulate, limit):
    data = VLMDataModule(train=lines(), batch_size=1)
    made = trainer(accumulate_grad_batches=accumulate, limit_train_batches=limit)
    made.fit(Reads(processor), data)
    assert math.ceil(data.batches_per_epoch(1, limit) / accumulate) == made.global_step


def test_batches_per_epoch_of_several_ranks(lines):
    data = VLMDataModule(train=lines(), batch_size=2)
    assert [data.batches_per_epoch(world) for world in (1, 2, 3, 4)] == [3, 2, 1, 1]


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_a_stage_without_data_is_named_as_in_the_config(lines, processor, stage):
    split = {"validate": "val"}.get(stage, stage)
    made, data = trainer(), VLMDataModule(train=lines())
    with pytest.raises(UserError, match=rf"^data\.{split} is not set"):
        getattr(made, stage)(Reads(processor), data)


class SaveAtEnd(Callback):
    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint("saved.ckpt")


def test_resumed_at_an_epochs_end_under_max_steps_it_sees_the_rest(lines, processor):
    def run(callbacks=None, ckpt_path=None):
        reads = Reads(processor)
        data = VLMDataModule(train=lines(), batch_size=2)
        trainer(max_epochs=-1, max_steps=8, callbacks=callbacks).fit(reads, data, ckpt_path=ckpt_path)
        return reads.seen

    whole = run(SaveAtEnd())
    assert sorted(whole[:6]) == sorted(whole[6:12]) == list("123456")
    assert run(ckpt_path="saved.ckpt") == whole[6:]


MODES = {
    "padded": {"batch_size": 2},
    "length": {"batching": "length", "batch_size": 2},
    "tokens": {"batching": "tokens", "max_tokens": 120},
    "packed": {"batching": "packed", "max_tokens": 120},
}
"""Batches of some kind, two samples in each or about that."""


@pytest.fixture
def uneven(write):
    """Fourteen samples of many lengths."""

    def records():
        for number in range(14):
            picture = [{"type": "image", "path": "cat.png"}] if number % 3 else []
            question = {"role": "user", "content": [*picture, {"type": "text", "text": "What is it?"}]}
            answer = {"role": "assistant", "content": f"cat {number} " + "and more " * (number % 5)}
            yield {"messages": [question, answer], "task": "ab"[number % 2]}

    return write(*records())


class Notes(Reads):
    """Notes batches, and saves after a step."""

    def __init__(self, processor, save_after=None):
        super().__init__(processor)
        self.save_after, self.batches = save_after, []

    def training_step(self, batch):
        self.batches.append([source.split(":")[-1] for source in batch.sources])
        return super().training_step(batch)

    def on_train_batch_end(self, *_):
        if self.global_step == self.save_after:
            self.trainer.save_checkpoint("middle.ckpt")


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_on_all_samples_and_resumes_in_the_middle(uneven, processor, mode):
    def fit(save_after=None, ckpt_path=None, workers=0):
        data = VLMDataModule(train=uneven, num_workers=workers, **MODES[mode])
        notes = Notes(processor, save_after)
        made = trainer(max_epochs=2)
        made.fit(notes, data, ckpt_path=ckpt_path, weights_only=False)
        assert made.global_step == 2 * data.batches_per_epoch(1)
        return notes.batches

    whole = fit(save_after=3)
    first = whole[: len(whole) // 2]
    assert sorted(int(source) for batch in first for source in batch) == list(range(1, 15))
    assert whole[: len(first)] != whole[len(first) :]
    assert fit(ckpt_path="middle.ckpt") == whole[3:]
    if mode in ("length", "packed"):
        assert fit(ckpt_path="middle.ckpt", workers=2) == whole[3:]


@pytest.mark.parametrize("mode", ["length", "tokens", "packed"])
def test_two_ranks_see_what_one_sees_that_accumulates(uneven, processor, mode):
    def fit(**options):
        data = VLMDataModule(train=uneven, **MODES[mode])
        notes = Notes(processor)
        trainer(**options).fit(notes, data)
        return notes.batches

    def on_a_rank():
        return fit(**DDP)

    alone = fit(accumulate_grad_batches=2)
    together = [batch for step in zip(*call_on_ranks(on_a_rank), strict=True) for batch in step]
    assert together[: len(alone)] == alone
    assert not any(together[len(alone) :])


def test_packed_batches_are_rows_without_padding_and_evaluation_stays_padded(uneven, processor):
    data = VLMDataModule(train=uneven, val=uneven, processor=processor, **MODES["packed"])
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train.is_packed
    assert train.inputs["input_ids"].shape == (1, train.tokens)
    assert train.tokens <= 120
    assert len(val.inputs["input_ids"]) == len(val.sources) == 8
    tokens = VLMDataModule(train=uneven, processor=processor, **MODES["tokens"])
    assert max(batch.inputs["input_ids"].numel() for batch in tokens.train_dataloader()) <= 120


@pytest.mark.parametrize("mode", ["length", "tokens", "packed"])
def test_what_cannot_be_used_is_reported_in_every_mode(lines, processor, mode, caplog):
    options = {"max_length": 100, "on_bad_sample": "skip"}
    data = VLMDataModule(train=lines(bad=[1, 3], long=[4]), **MODES[mode], **options)
    reads = Reads(processor)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer().fit(reads, data)
    assert sorted(reads.seen) == ["1", "3", "6"]
    assert len(data.report.skipped) == 3
    said = [record.getMessage() for record in caplog.records]
    assert any("3 can't be used, as training will report" in line for line in said)
    assert sum(line.startswith("Batches: ") for line in said) == 1
    with pytest.raises(DataError, match="not a picture"):
        trainer().fit(Reads(processor), VLMDataModule(train=lines(bad=[3]), **MODES[mode]))


def test_lengths_are_measured_once(uneven, processor, processor_of, caplog):
    data = VLMDataModule(train=uneven, **MODES["packed"])
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        for of_module in (processor, processor, processor_of("shipped")):
            trainer(max_steps=1).fit(Reads(of_module), data)
    assert sum("Measured 14 samples" in record.getMessage() for record in caplog.records) == 2


def test_too_few_tokens_are_refused_before_training(uneven, processor):
    data = VLMDataModule(train=uneven, batching="packed", max_tokens=20)
    with pytest.raises(UserError, match=r"data\.max_tokens is 20, but data\.jsonl:\d+ has \d+ tokens"):
        trainer().fit(Reads(processor), data)


def test_a_number_measured_later_is_settled_before_batches_are_made(uneven, processor):
    data = VLMDataModule(train=uneven, processor=processor, batching="packed", max_tokens="auto")
    data.setup("fit")
    with pytest.raises(UserError, match="found auto, which nothing measures here"):
        data.batches_per_epoch(1)
    data.set_max_tokens(120)
    expected = VLMDataModule(train=uneven, processor=processor, **MODES["packed"])
    assert data.batches_per_epoch(1) == expected.batches_per_epoch(1)
    with pytest.raises(UserError, match=r"data\.max_tokens is 20, but"):
        data.set_max_tokens(20)


@pytest.mark.parametrize("mode", MODES)
def test_tasks_are_drawn_in_every_mode(uneven, processor, mode, caplog):
    data = VLMDataModule(
        train=uneven, sampling={"score": "weights", "weights": {"a": 1, "b": 0}}, **MODES[mode]
    )
    notes = Notes(processor)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(max_epochs=2).fit(notes, data)
    seen = [int(source) for batch in notes.batches for source in batch]
    assert set(seen) == {1, 3, 5, 7, 9, 11, 13}
    said = [record.getMessage() for record in caplog.records]
    assert f"Epochs of each task: a {len(seen) / 7:.2f} ({len(seen)} samples), b 0.00 (0 samples)" in said
    if mode != "padded":
        with pytest.raises(UserError, match=rf"data\.batching {mode} makes its batches beforehand"):
            VLMDataModule(train=uneven, sampling={"score": "hard"}, **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_tuner_finds_a_batch_size_where_there_is_one(uneven, processor, mode):
    data = VLMDataModule(train=uneven, **MODES[mode])
    tuner = Tuner(trainer(max_epochs=1))
    options = {"mode": "power", "init_val": 1, "max_trials": 2, "steps_per_trial": 1}
    if mode in ("tokens", "packed"):
        with pytest.raises(UserError, match=r"data\.batch_size, which has no effect .* set data\.max_tokens"):
            tuner.scale_batch_size(Reads(processor), datamodule=data, **options)
        return
    assert tuner.scale_batch_size(Reads(processor), datamodule=data, **options) == data.batch_size == 2
    assert list(Path().rglob("*scale_batch_size*")) == []
    trainer().fit(Reads(processor), data)
