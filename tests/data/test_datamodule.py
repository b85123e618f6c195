import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import DataError, UserError


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
        f"In 1 samples {apart}",
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
    with pytest.raises(UserError, match="batch_size is 0"):
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
