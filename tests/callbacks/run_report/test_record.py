"""What RunReport records, against what others saw of the same run."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import EarlyStopCheckpoint, RunReport, StagedUnfreezing, record_event
from lightning_vlm_callbacks.run_report.charts import frame
from lightning_vlm_callbacks.run_report.history import read_history


@pytest.fixture
def make_trainer(make_trainer):
    return partial(make_trainer, enable_checkpointing=None)


def entries(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def curves(folder):
    """Name -> step -> value, as the report draws them."""
    history = read_history(folder / "report.jsonl")
    found = {name: dict(curve.points()) for name, curve in history.curves.items()}
    found.pop("staged_unfreezing/stage", None)  # a resumed run logs the stage that it is in
    return found


def events(folder):
    return [(event.step, event.kind) for event in read_history(folder / "report.jsonl").events]


class Witness(Callback):
    """Notes what the Trainer shows to callbacks when an epoch or a validation has ended."""

    def __init__(self):
        self.seen = defaultdict(dict)

    def on_train_batch_start(self, trainer, *_):
        value = trainer.callback_metrics.get("train/loss")
        if trainer.global_step > 0:
            self.seen["train/loss"].setdefault(trainer.global_step - 1, float(value))

    def on_validation_end(self, trainer, pl_module):
        for name in ("val/loss", "val/accuracy"):
            self.seen[name][trainer.global_step - 1] = float(trainer.callback_metrics[name])


def in_csv(folder):
    """What Lightning's own logger has written of the same run."""
    found = defaultdict(dict)
    with (folder / "metrics.csv").open() as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    found[name][int(row["step"])] = float(value)
    return dict(found)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3, "log_every_n_steps": 2}], ids=str)
def test_the_same_steps_and_values_as_others_saw(make_trainer, classifier, digits, tmp_path, options):
    witness = Witness()
    trainer = make_trainer(
        max_epochs=3,
        logger=CSVLogger(tmp_path, name="", version=""),
        callbacks=[witness, LearningRateMonitor(), RunReport()],
        **options,
    )
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    trainer.fit(classifier(schedule=schedule), digits.Digits())
    recorded = curves(tmp_path)
    expected = in_csv(tmp_path)
    assert len(expected["train/loss"]) > 3
    rates = recorded.pop("lr")
    assert len(set(rates.values())) > 3
    assert rates.items() <= expected["lr-AdamW"].items()
    assert recorded.pop("grad_norm").keys() == rates.keys()
    assert recorded == expected
    for name, values in witness.seen.items():
        both = recorded[name].keys() & values.keys()
        assert len(both) > 2
        assert {step: recorded[name][step] for step in both} == {step: values[step] for step in both}
    assert (tmp_path / "report.html").stat().st_size > 5000
    assert (tmp_path / "report/loss.png").stat().st_size > 5000


@pytest.mark.parametrize("logger", [False, True])
def test_a_logger_makes_no_difference(make_trainer, classifier, digits, tmp_path, logger):
    """Nor does the report make one for others: the Trainer's loggers and folder are as they were."""
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.logger.experiment.add_scalar("x", 1)  # as projects do that never run without a logger
            seen.append(trainer.log_dir)

        def on_train_end(self, trainer, pl_module):
            pl_module.log_dict({})

    loggers = [CSVLogger(tmp_path, name="", version="")] if logger else False
    trainer = make_trainer(max_steps=4, logger=loggers, callbacks=[RunReport()], default_root_dir=tmp_path)
    if not logger:
        trainer.callbacks.append(Look())
    trainer.fit(classifier(), digits.Digits())
    assert list(curves(tmp_path)["train/loss"]) == [0, 1, 2, 3]
    assert list(curves(tmp_path)["lr"]) == [0, 1, 2, 3]
    assert trainer.loggers == (loggers or [])
    assert set(seen) <= {str(tmp_path)}


def keeper(folder, **options):
    return EarlyStopCheckpoint(
        every_n_steps=1, keep_periodic=None, dirpath=str(folder / "checkpoints"), **options
    )


def fit(make_trainer, module, data, folder, *more, ckpt_path=None, **options):
    stages = [{"at": 0, "train": {"head": 1.0}}, {"at": 6, "train": {"*": 0.5}}]
    options = {"max_epochs": 2, "default_root_dir": folder, **options}
    callbacks = [StagedUnfreezing(stages, unit="step"), RunReport(), keeper(folder), *more]
    trainer = make_trainer(callbacks=callbacks, **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def test_a_resumed_run_continues_the_record(make_trainer, classifier, digits, tmp_path):
    """In another folder or the same, at an epoch's end, inside one, and where a stage begins."""
    whole = tmp_path / "whole"
    fit(make_trainer, classifier(), digits.Digits(), whole)
    expected, stages = curves(whole), frame(read_history(whole / "report.jsonl")).stages
    assert [(stage.start, stage.end, stage.text) for stage in stages] == [
        (0, 6, "head ×1"),
        (6, 16, "* ×0.5"),
    ]
    for step in (3, 6, 8, 11):
        file = whole / f"checkpoints/step-{step:08d}.ckpt"
        other = tmp_path / f"from-{step}"
        torch.manual_seed(step)
        fit(make_trainer, classifier(), digits.Digits(), other, ckpt_path=file)
        assert curves(other) == expected
        assert frame(read_history(other / "report.jsonl")).stages == stages
        assert (step, "resumed") in events(other)
    before = (whole / "report.jsonl").read_bytes()
    fit(make_trainer, classifier(), digits.Digits(), whole, ckpt_path=file)
    assert curves(whole) == expected
    assert (whole / "report.jsonl").read_bytes().startswith(before)  # only appended to
    file = whole / "checkpoints/step-00000003.ckpt"
    fit(make_trainer, classifier(), digits.Digits(), whole, ckpt_path=file, max_steps=5)
    found = curves(whole)
    assert found.keys() == {name for name, curve in expected.items() if min(curve) < 5}
    for name, curve in found.items():  # nothing is left of the future that this run doesn't have
        assert curve == {step: value for step, value in expected[name].items() if step < 5}


def test_a_run_whose_folder_was_moved(make_trainer, classifier, digits, tmp_path):
    whole = tmp_path / "whole"
    fit(make_trainer, classifier(), digits.Digits(), whole)
    expected = curves(whole)
    moved = whole.rename(tmp_path / "moved")
    file = moved / "checkpoints/step-00000008.ckpt"
    fit(make_trainer, classifier(), digits.Digits(), tmp_path / "new", ckpt_path=file)
    assert curves(tmp_path / "new") == expected
    (moved / "report.jsonl").unlink()
    with pytest.warns(UserWarning, match="the record of steps before 8 is neither where it was nor"):
        fit(make_trainer, classifier(), digits.Digits(), tmp_path / "newer", ckpt_path=file)
    assert min(curves(tmp_path / "newer")["train/loss"]) == 8


def test_a_checkpoint_from_before_there_was_a_record(make_trainer, classifier, digits, tmp_path):
    make_trainer(max_steps=4, callbacks=[keeper(tmp_path)]).fit(classifier(), digits.Digits())
    file = tmp_path / "checkpoints/step-00000004.ckpt"
    fit(make_trainer, classifier(), digits.Digits(), tmp_path, ckpt_path=file)
    assert list(curves(tmp_path)["train/loss"]) == list(range(4, 16))
    assert "starts at step 4" in entries(tmp_path)[0]["text"]


def test_other_runs_in_one_folder(make_trainer, classifier, digits, tmp_path):
    """Without a logger runs share a folder. The last one is drawn, and each can be resumed."""
    first, second = tmp_path / "a", tmp_path / "b"
    report = RunReport(str(tmp_path))
    for folder, steps in ((first, 8), (second, 5)):
        trainer = make_trainer(max_steps=steps, callbacks=[RunReport(str(tmp_path)), keeper(folder)])
        trainer.fit(classifier(), digits.Digits())
    assert list(curves(tmp_path)["train/loss"]) == list(range(5))
    trainer = make_trainer(max_steps=12, callbacks=[report, keeper(tmp_path / "c")])
    trainer.fit(classifier(), digits.Digits(), ckpt_path=first / "checkpoints/step-00000004.ckpt")
    assert list(curves(tmp_path)["train/loss"]) == list(range(12))


def test_a_second_fit(make_trainer, classifier, digits, tmp_path):
    """With the same Trainer it goes on; with another it is a new run."""
    report, module = RunReport(str(tmp_path)), classifier()
    trainer = make_trainer(max_epochs=1, callbacks=[report])
    trainer.fit(module, digits.Digits())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, digits.Digits())
    assert list(curves(tmp_path)["train/loss"]) == list(range(16))
    make_trainer(max_epochs=1, callbacks=[report]).fit(module, digits.Digits())
    assert list(curves(tmp_path)["train/loss"]) == list(range(8))


KILLED = """
import os, signal, sys
import lightning_vlm_callbacks
from lightning_vlm_callbacks import RunReport, EarlyStopCheckpoint
sys.path.insert(0, sys.argv[1])
import digits
from lightning.pytorch import Callback, Trainer, seed_everything

class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 11:
            with open(sys.argv[2] + "/report.jsonl", "a") as torn:
                torn.write('{"time": 1, "step": 11, "metr')
            os.kill(os.getpid(), signal.SIGKILL)

seed_everything(0)
keeper = EarlyStopCheckpoint(every_n_steps=3, keep_periodic=None, dirpath=sys.argv[2] + "/checkpoints")
Trainer(
    max_epochs=2, logger=False, default_root_dir=sys.argv[2], callbacks=[RunReport(), keeper, Kill()],
    enable_progress_bar=False, log_every_n_steps=1, accelerator="cpu", num_sanity_val_steps=0,
).fit(digits.Classifier(), digits.Digits())
"""


def test_a_killed_run_keeps_its_record(make_trainer, classifier, digits, tmp_path):
    """Even with half a line at its end; the run that is resumed in the folder goes on below it."""
    command = [sys.executable, "-c", KILLED, str(Path(digits.__file__).parent), str(tmp_path)]
    killed = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert list(curves(tmp_path)["train/loss"]) == list(range(11))
    assert not (tmp_path / "report.html").exists()
    trainer = make_trainer(max_epochs=2, default_root_dir=tmp_path, callbacks=[RunReport(), keeper(tmp_path)])
    trainer.fit(classifier(), digits.Digits(), ckpt_path=tmp_path / "checkpoints/step-00000009.ckpt")
    whole = make_trainer(max_epochs=2, callbacks=[RunReport(str(tmp_path / "whole"))])
    whole.fit(classifier(), digits.Digits())
    assert curves(tmp_path)["train/loss"] == curves(tmp_path / "whole")["train/loss"]


def _on_rank(make_trainer, classifier, digits, folder):
    options = {"devices": 2, "strategy": "ddp", "enable_checkpointing": False}
    trainer = make_trainer(max_epochs=2, default_root_dir=folder, callbacks=[RunReport()], **options)
    trainer.fit(classifier(), digits.Digits(stateful=False))
    record_event(trainer, "late", "after the end nothing is recorded")
    return {"loggers": len(trainer.loggers)}


def test_two_processes_write_once(on_two_ranks, make_trainer, classifier, digits, tmp_path):
    found = on_two_ranks(_on_rank, make_trainer, classifier, digits, tmp_path)
    assert found == [{"loggers": 0}] * 2
    lines = entries(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line.get("metrics", {})] == list(range(8))
    assert [line["event"] for line in lines if "event" in line] == ["started", "ended"]


def test_what_is_not_recorded(make_trainer, classifier, digits, tmp_path):
    trainer = make_trainer(fast_dev_run=True, default_root_dir=tmp_path, callbacks=[RunReport()])
    trainer.fit(classifier(), digits.Digits())
    assert not list(tmp_path.iterdir())
    trainer = make_trainer(
        max_epochs=2, log_every_n_steps=0, default_root_dir=tmp_path, callbacks=[RunReport()]
    )
    trainer.fit(classifier(), digits.Digits())
    assert set(curves(tmp_path)) == {"val/loss", "val/accuracy"}
    record_event(make_trainer(), "stage", "nobody listens")


class Odd(LightningModule):
    """Logs NaN, infinity, what isn't a number, and hundreds of names; then it fails."""

    def __init__(self, most):
        super().__init__()
        self.layer, self.most = torch.nn.Linear(1, 1), most

    def training_step(self, batch, batch_idx):
        values = (float("nan"), float("inf"), -float("inf"), 1.0)
        self.log("train/loss", values[batch_idx % 4])
        self.log_dict({f"group-{index}": float(index) for index in range(300)})
        self.logger.log_metrics({"text": "no number", "<b>": torch.ones(())}, step=batch_idx)
        if batch_idx == self.most:
            raise ValueError("the data <end> here")
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=torch.tensor(0.1))


def test_odd_values_and_an_exception(make_trainer, tmp_path):
    """The record is JSON for any reader, and the report is drawn all the same."""
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[RunReport()])
    with pytest.raises(ValueError, match="the data <end> here"):
        trainer.fit(Odd(6), torch.utils.data.DataLoader(torch.ones(9, 1)))

    def refuse(name):
        raise AssertionError(f"{name} isn't JSON")

    for line in (tmp_path / "report.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    found = curves(tmp_path)
    assert str(list(found["train/loss"].values())) == "[nan, inf, -inf, 1.0, nan, inf]"
    assert found["group-299"][5] == 299
    assert found["lr"][0] == pytest.approx(0.1)
    assert found["<b>"][3] == 1
    assert "text" not in found
    assert events(tmp_path) == [(0, "started"), (6, "interrupted")]
    page = (tmp_path / "report.html").read_text()
    assert "ValueError: the data &lt;end&gt; here" in page
    assert "<b>1" in page  # bold, of ours
    assert "&lt;b&gt;" in page
    assert trainer.loggers == []


def test_events_of_lightning(make_trainer, classifier, digits, tmp_path):
    """Checkpoints of any ModelCheckpoint, the best one, and an early stop."""
    stop = EarlyStopping("val/accuracy", mode="min", patience=1)
    save = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss")
    trainer = make_trainer(
        max_epochs=9,
        default_root_dir=tmp_path,
        callbacks=[stop, save, RunReport()],
    )
    trainer.fit(classifier(), digits.Digits())
    assert trainer.current_epoch < 8
    kinds = [kind for _, kind in events(tmp_path)]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["stopped", "ended"]
    best = [event for event in read_history(tmp_path / "report.jsonl").events if event.kind == "best"]
    assert best[-1].values["path"] == save.best_model_path
    assert f"val/loss {float(save.best_model_score):.4g}" in best[-1].text
